"""Estimate the number of runs and the run time of a comparison before it starts (`kasatune compare --plan`)."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kasatune.data.tasks.dataset import TaskData
from kasatune.evaluation.task_model import TaskModel
from kasatune.evaluation.text_scores import load_scorer
from kasatune.experiments.compare.compare import plan_methods
from kasatune.experiments.compare.detectable_difference import smallest_differences
from kasatune.experiments.compare.method_on_task import MethodOnTask
from kasatune.experiments.compare.process_cache import ProcessCache, process_cache
from kasatune.experiments.compare.resumable_scheduler import Scheduler
from kasatune.experiments.compare.run_store import RUNS, FinishedRun
from kasatune.experiments.compare.spec import ComparisonSpec
from kasatune.io.library_noise import quiet
from kasatune.training.engines.trainer import mean_loss

_STEPS = 3
_PROMPTS = 2
_OVERHEAD = 3.0  # seconds per run outside its steps and evaluations: loading, saving, loading again


def forecast(
    spec: ComparisonSpec, out: Path, *, threads: int, workers: int | str, pilot: Path | None = None
) -> dict[str, Any]:
    """{"cells", "runs", "finished", "left", "at_once", "basis", "smallest_differences"} of a comparison.

    Numbers of runs and times in seconds, per method and task, and the smallest differences that the seeds can show.

    The time of a run is the mean over the finished runs of the same method on the same task; without any, over those
    of other methods on the task; without any, a few training steps of the first method are timed.

    Args:
        spec: the comparison.
        out: its directory, which need not exist.
        threads: CPU threads of each run.
        workers: number of runs at a time, or "ray".
        pilot: directory of an earlier comparison; see `smallest_differences`.

    Raises:
        InputError: a recipe, its data or the pilot is invalid.
    """
    cache = process_cache()
    with quiet():
        methods = plan_methods(spec, cache, lambda text: None)
        differences = smallest_differences(spec, methods, pilot)
        Scheduler(methods, out / RUNS, lambda text: None).read_finished()
        at_once = workers if isinstance(workers, int) else max(1, (os.cpu_count() or 1) // threads)
        rows, measured = [], False
        for number in range(len(spec.tasks)):
            group = [method for method in methods if method.place[0] == number]
            finished = [run for method in group for run in _finished(method)]
            measured = measured or bool(finished)
            seconds = _mean_seconds(finished) if finished else _time_one_run(group, cache, threads)
            rows += [_row(method, seconds) for method in group]
    return {
        "cells": rows,
        "runs": sum(row["runs"] for row in rows),
        "finished": sum(row["finished"] for row in rows),
        "left": sum(row["left"] for row in rows) / at_once,
        "at_once": at_once,
        "smallest_differences": differences,
        "basis": "from the finished runs" if measured else f"from {_STEPS} steps of the first method",
    }


def _row(method: MethodOnTask, task_seconds: float) -> dict[str, Any]:
    finished = _finished(method)
    seconds = _mean_seconds(finished) if finished else task_seconds
    return {
        "task": method.task.name,
        "method": method.label,
        "runs": method.number_of_runs,
        "finished": len(finished),
        "seconds": seconds,
        "left": seconds * (method.number_of_runs - len(finished)),
    }


def _finished(method: MethodOnTask) -> list[FinishedRun]:
    trials = [run for trial in method.trials for _, run in trial.runs]
    return [*trials, *(run for _, run in method.finals)]


def _mean_seconds(runs: Sequence[FinishedRun]) -> float:
    return statistics.fmean(run.run.get("seconds", 0.0) for run in runs)


def _time_one_run(group: Sequence[MethodOnTask], cache: ProcessCache, threads: int) -> float:
    """Estimated seconds of a run, from timing a few training steps and one evaluation."""
    method = next((method for method in group if not method.is_fitted), group[0])
    recipe = method.spec.recipe(method.task, method.variant, method.spec.seeds[0], {})
    data = cache.data(recipe)
    size = recipe.training.batch_size
    few = replace(data, splits={name: rows.head((_STEPS + 1) * size) for name, rows in data.splits.items()})
    threads_before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        task_model = TaskModel.for_training(recipe, few)
        rows = task_model.encode(few, "train")
        per_step = 0.0 if method.is_fitted else _seconds_per_step(task_model, rows, size)
        start = time.perf_counter()
        task_model.score(rows, few)
        per_row = (time.perf_counter() - start) / len(rows)
        writing = _seconds_of_writing(task_model, data) if data.kind == "generation" else 0.0
    finally:
        torch.set_num_threads(threads_before)
    training = recipe.training
    per_epoch = math.ceil(len(data.splits["train"]) / size)
    steps = training.max_steps or math.ceil(training.epochs * per_epoch)
    evaluations = math.ceil(steps / per_epoch) + 1
    return _OVERHEAD + per_step * steps + per_row * evaluations * len(data.splits["validation"]) + writing


def _seconds_of_writing(task_model: TaskModel, data: TaskData) -> float:
    """Estimated seconds in which a run writes its answers, from the first prompts."""
    rows = data.splits["validation"]
    if load_scorer(task_model.info) is None:
        return 0.0  # a few samples
    prompts = list(dict.fromkeys(rows.first))
    start = time.perf_counter()
    task_model.generate(prompts[:_PROMPTS])
    return (time.perf_counter() - start) / min(_PROMPTS, len(prompts)) * len(prompts)


def _seconds_per_step(task_model: Any, rows: Any, size: int) -> float:
    """Mean seconds of a forward and backward pass; the first one is a warm-up and not counted."""
    seconds = []
    for start in range(0, len(rows), size):
        batch = task_model.collate([rows[index] for index in range(start, min(start + size, len(rows)))])
        device = next(task_model.model.parameters()).device
        batch = {key: value.to(device) for key, value in batch.items()}
        labels = batch.pop("labels")
        step_start = time.perf_counter()
        mean_loss(task_model.model(**batch), labels).backward()
        seconds.append(time.perf_counter() - step_start)
    return statistics.fmean(seconds[1:] or seconds)

"""How many runs a comparison has and how long they will take, before they are begun."""

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

from kasatune.evaluation.task_model import TaskModel
from kasatune.experiments.compare.compare import make_cells
from kasatune.experiments.compare.executors import shared_here
from kasatune.experiments.compare.method_on_task import Cell, fitted
from kasatune.experiments.compare.process_cache import Shared
from kasatune.experiments.compare.resumable_scheduler import Engine
from kasatune.experiments.compare.run_store import RUNS, Finished
from kasatune.experiments.compare.spec import Request
from kasatune.io.library_noise import quiet
from kasatune.training.trainer import mean_loss

_STEPS = 3
_FIXED = 3.0  # seconds a run that no step and no evaluation take: loading, saving, loading again


def forecast(request: Request, out: Path, *, threads: int, workers: int | str) -> dict[str, Any]:
    """{"cells", "runs", "finished", "left", "at_once", "basis"}: seconds, for every method on every task.

    Where a method has finished runs on a task, theirs count; where only other methods have, those; where there are
    none, a few steps of the first method are timed.

    Raises:
        InputError: a recipe or its data is wrong.
    """
    shared = shared_here()
    with quiet():
        cells = make_cells(request, shared, lambda text: None)
        Engine(cells, out / RUNS, lambda text: None).read()
        at_once = workers if isinstance(workers, int) else max(1, (os.cpu_count() or 1) // threads)
        rows, measured = [], False
        for number in range(len(request.tasks)):
            group = [cell for cell in cells if cell.place[0] == number]
            there = [run for cell in group for run in _finished(cell)]
            measured = measured or bool(there)
            common = _mean(there) if there else _probe(group, shared, threads)
            rows += [_row(cell, common) for cell in group]
    return {
        "cells": rows,
        "runs": sum(row["runs"] for row in rows),
        "finished": sum(row["finished"] for row in rows),
        "left": sum(row["left"] for row in rows) / at_once,
        "at_once": at_once,
        "basis": "from the runs that are finished" if measured else f"from {_STEPS} steps of the first method",
    }


def _row(cell: Cell, common: float) -> dict[str, Any]:
    there = _finished(cell)
    seconds = _mean(there) if there else common
    return {
        "task": cell.task.name,
        "method": cell.variant.text,
        "runs": cell.number_of_runs,
        "finished": len(there),
        "seconds": seconds,
        "left": seconds * (cell.number_of_runs - len(there)),
    }


def _finished(cell: Cell) -> list[Finished]:
    return [run for _, run in (*cell.tried, *cell.finals)]


def _mean(runs: Sequence[Finished]) -> float:
    return statistics.fmean(run.run.get("seconds", 0.0) for run in runs)


def _probe(group: Sequence[Cell], shared: Shared, threads: int) -> float:
    """Seconds of a run: its steps and its evaluations, as a few of them took."""
    cell = next((one for one in group if not fitted(one)), group[0])
    recipe = cell.request.recipe(cell.task, cell.variant, cell.request.seeds[0], {})
    data = shared.data(recipe)
    size = recipe.training.batch_size
    few = replace(data, splits={name: rows.head((_STEPS + 1) * size) for name, rows in data.splits.items()})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        prepared = TaskModel.for_training(recipe, few)
        rows = prepared.encode(few, "train")
        per_step = 0.0 if fitted(cell) else _time_steps(prepared, rows, size)
        start = time.perf_counter()
        prepared.logits(rows)
        per_row = (time.perf_counter() - start) / len(rows)
    finally:
        torch.set_num_threads(before)
    training = recipe.training
    per_epoch = math.ceil(len(data.splits["train"]) / size)
    steps = training.max_steps or math.ceil(training.epochs * per_epoch)
    evaluations = math.ceil(steps / per_epoch) + 1
    return _FIXED + per_step * steps + per_row * evaluations * len(data.splits["validation"])


def _time_steps(prepared: Any, rows: Any, size: int) -> float:
    """Seconds of a forward and a backward pass; the first of them is not counted."""
    seconds = []
    for start in range(0, len(rows), size):
        batch = prepared.collate([rows[index] for index in range(start, min(start + size, len(rows)))])
        device = next(prepared.model.parameters()).device
        batch = {key: value.to(device) for key, value in batch.items()}
        labels = batch.pop("labels")
        begun = time.perf_counter()
        mean_loss(prepared.model(**batch), labels).backward()
        seconds.append(time.perf_counter() - begun)
    return statistics.fmean(seconds[1:] or seconds)

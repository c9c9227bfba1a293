"""The content of comparison.json: what the finished runs of a comparison say, counted and tested."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kasatune.experiments.compare.hyperparameter_search import at_the_edge
from kasatune.experiments.compare.method_on_task import Cell, fitted
from kasatune.experiments.compare.resumable_scheduler import Progress
from kasatune.experiments.compare.run_store import Finished
from kasatune.experiments.compare.significance import compare_to_reference, count_tasks, overall
from kasatune.experiments.compare.spec import PROTOCOLS, Request
from kasatune.io.atomic import finite
from kasatune.io.environment import processor, versions
from kasatune.methods.table import METHODS
from kasatune.metrics import classification_scores, regression_scores
from kasatune.metrics.intervals import bootstrap_interval
from kasatune.metrics.resampling import resampled_scores
from kasatune.runs.directory import HISTORY, PREDICTIONS, History

FORMAT = 1
_MADE_FROM = ("recipe_sha256", "data_sha256", "model", "machine", "deterministic", "versions")


class Result:
    """What one method came to on one task, read from its runs.

    Args:
        cell: the method and the task.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.primary = cell.data.primary
        self.done = [(seed, run) for seed, run in cell.finals if run.done]

    @cached_property
    def scores(self) -> dict[int, float]:
        """The main score of each seed that has one."""
        return {seed: run.metrics["metrics"][self.primary] for seed, run in self.done}

    @cached_property
    def table(self) -> dict[int, np.ndarray] | None:
        """The main score of each seed on resamples of the scored rows; None where it cannot be had."""
        predictions = [_predictions(run) for _, run in self.done]
        if not predictions or any(
            one is None or len(one) != len(self.cell.data.splits["validation"]) for one in predictions
        ):
            return None
        labels = self.cell.data.splits["validation"].labels
        table = resampled_scores(self.primary, labels, predictions)  # type: ignore[arg-type]
        return None if table is None else dict(zip(self.scores, table, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """The entry of comparison.json, without what needs the other methods."""
        cell, info = self.cell, METHODS[self.cell.variant.method]
        values = list(self.scores.values())
        interval = bootstrap_interval(values) if values else None
        best = [max(curve, key=lambda point: point[1]) for _, run in self.done if (curve := self._curve(run))]
        return {
            "method": cell.variant.text,
            "name": info.name,
            "title": cell.variant.title,
            "paper": info.paper,
            "implemented_by": info.implemented_by,
            "reconstructed": info.reconstructed,
            "fitted": fitted(cell),
            "search": self._search(),
            "runs": [self._run(seed, run) for seed, run in cell.finals],
            "n": len(values),
            "mean": interval.estimate if interval else None,
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            "interval": [interval.low, interval.high] if interval and len(values) > 1 else None,
            "best_epoch_mean": statistics.fmean(point[1] for point in best) if best else None,
            "costs": _costs([run for _, run in self.done]),
            "curve": self._mean_curve(),
        }

    def _search(self) -> dict[str, Any] | None:
        if not self.cell.space:
            return None
        tried = [settings for settings, _ in self.cell.tried]
        return {
            "space": {name: list(bounds) for name, bounds in self.cell.space.items()},
            "trials": [
                {
                    "settings": settings,
                    "score": run.metrics["metrics"].get(self.primary) if run.done else None,
                    "loss": run.metrics["metrics"].get("loss") if run.done else None,
                    "error": run.error,
                    "run": run.id,
                }
                for settings, run in self.cell.tried
            ],
            "chosen": self.cell.chosen,
            "at_the_edge": at_the_edge(self.cell.chosen, self.cell.space, tried) if self.cell.chosen else None,
        }

    def _run(self, seed: int, run: Finished) -> dict[str, Any]:
        return {
            "seed": seed,
            "run": run.id,
            "score": self.scores.get(seed),
            "metrics": run.metrics.get("metrics"),
            "epoch": (run.metrics.get("selected") or {}).get("epoch"),
            "error": run.error,
            "made_from": {key: run.metrics[key] for key in _MADE_FROM if key in run.metrics},
        }

    def _curve(self, run: Finished) -> list[tuple[float, float]]:
        events = History(run.folder / HISTORY).events()
        return [
            (event["epoch"], event["metrics"][self.primary])
            for event in events
            if event.get("event") == "evaluate" and event["metrics"].get(self.primary) is not None
        ]

    def _mean_curve(self) -> list[list[float]]:
        """[epoch, mean, smallest, largest] over the seeds, at the epochs that all of them have."""
        curves = [dict(self._curve(run)) for _, run in self.done]
        common = [epoch for epoch in (curves[0] if curves else {}) if all(epoch in curve for curve in curves)]
        points = [(epoch, [curve[epoch] for curve in curves]) for epoch in common]
        return [[epoch, statistics.fmean(values), min(values), max(values)] for epoch, values in points]


def gather(
    request: Request, cells: Sequence[Cell], progress: Progress, *, threads: int, command: str
) -> dict[str, Any]:
    """comparison.json of what there is so far."""
    results: dict[str, list[Result]] = {task.name: [] for task in request.tasks}
    for cell in cells:
        results[cell.task.name].append(Result(cell))
    tasks = [_task(results[task.name]) for task in request.tasks]
    compare_to_reference(request, list(results.values()), tasks)
    for task, group in zip(tasks, results.values(), strict=True):
        task["counts"] = count_tasks(group, task)
    content = {
        "format": FORMAT,
        "command": command,
        "protocol": request.protocol,
        "protocol_in_words": PROTOCOLS[request.protocol],
        "reference": request.reference,
        "seeds": list(request.seeds),
        "search": {**asdict(request.search), "applies": request.search.trials > 1},
        "progress": asdict(progress),
        "complete": progress.there == progress.planned,
        "methods": [variant.text for variant in request.variants],
        "tasks": tasks,
        "overall": overall(request, tasks),
        "machine": {"processor": processor(), "processors": os.cpu_count(), "threads_per_run": threads},
        "versions": versions(),
    }
    return finite(content)


def _task(group: Sequence[Result]) -> dict[str, Any]:
    cell = group[0].cell
    recipe, data = cell.task.recipe, cell.data
    return {
        "name": cell.task.name,
        "task": data.name,
        "model": recipe.model.name,
        "primary": data.primary,
        "rows": {split: len(rows) for split, rows in data.splits.items() if split in ("train", "validation")},
        "labels": len(data.label_names) if data.label_names else None,
        "data_source": data.source,
        "data_sha256": data.sha256,
        "notes": list(data.notes),
        "training": {
            key: getattr(recipe.training, key)
            for key in ("epochs", "max_steps", "batch_size", "schedule", "warmup_ratio", "weight_decay", "precision")
        },
        "max_length": recipe.task.max_length,
        "shared_method_settings": {
            key: getattr(recipe.method, key) for key in ("r", "alpha", "dropout", "target_modules", "beta", "gamma")
        },
        "majority": _majority(cell),
        "results": [result.as_dict() for result in group],
    }


def _majority(cell: Cell) -> float:
    """The main score of answering every row alike: with the commonest training label, or the training mean."""
    train, scored = cell.data.splits["train"].labels, cell.data.splits["validation"].labels
    if cell.data.kind == "classification":
        answer = statistics.mode(train)
        classes = len(cell.data.label_names or ()) or None
        return classification_scores([cell.data.primary], [answer] * len(scored), scored, classes)[cell.data.primary]
    if cell.data.primary in ("pearson", "spearman"):
        return 0.0  # the correlation with a constant
    return regression_scores([cell.data.primary], [statistics.fmean(train)] * len(scored), scored)[cell.data.primary]


def _costs(runs: Sequence[Finished]) -> dict[str, Any]:
    """Medians over the runs; the attaching of the slowest, which found no decomposition ready."""
    if not runs:
        return {}
    metrics = [run.metrics for run in runs]
    seconds = [one["seconds"] for one in metrics]
    steps = [(one.get("last") or {}).get("step") or 0 for one in metrics]
    per_step = [one["train"] / step for one, step in zip(seconds, steps, strict=True) if step]
    kept = [one["retention"] for one in metrics if one.get("retention")]
    return {
        "trained_parameters": metrics[0]["trainable_parameters"],
        "head_parameters": metrics[0]["head_parameters"],
        "file_bytes": metrics[0].get("file_bytes", {}),
        "peak_memory_bytes": _median([one.get("peak_memory_bytes") for one in metrics]),
        "seconds_attach": max(one.get("attach", 0.0) for one in seconds),
        "seconds_per_step": _median(per_step),
        "seconds_train": _median([one.get("train") for one in seconds]),
        "seconds_total": _median([run.run.get("seconds") for run in runs]),
        "steps": steps[0],
        "retention": {
            "kind": kept[0]["kind"],
            "before": _median([one["before"] for one in kept]),
            "after": _median([one["after"] for one in kept]),
        }
        if kept
        else None,
    }


def _median(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def _predictions(run: Finished) -> list[Any] | None:
    try:
        return json.loads((Path(run.folder) / PREDICTIONS).read_text(encoding="utf-8"))["predictions"]
    except (OSError, ValueError, KeyError):
        return None

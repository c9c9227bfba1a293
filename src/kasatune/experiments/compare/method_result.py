"""The result of one method on one task, read from the files of its runs: scores, intervals, learning curve, costs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kasatune.experiments.compare.hyperparameter_search import at_the_edge
from kasatune.experiments.compare.method_on_task import MethodOnTask
from kasatune.experiments.compare.run_store import FinishedRun
from kasatune.io.run_layout import HISTORY, PREDICTIONS
from kasatune.methods.table import METHODS
from kasatune.metrics.bootstrap import bootstrap_interval, resampled_scores
from kasatune.runs.history import EvaluateEvent, read_history

_MADE_FROM = ("recipe_sha256", "data_sha256", "model", "machine", "deterministic", "versions")


class MethodResult:
    """The scores of one method on one task.

    Args:
        method: the method on the task, with its finished runs.
    """

    def __init__(self, method: MethodOnTask) -> None:
        self.method = method
        self.primary = method.data.primary
        self.done = [(seed, run) for seed, run in method.finals if run.done]

    @cached_property
    def scores(self) -> dict[int, float]:
        """The main score of each seed that has one."""
        return {seed: run.metrics["metrics"][self.primary] for seed, run in self.done}

    @cached_property
    def resampled(self) -> dict[int, np.ndarray] | None:
        """The main score of each seed on resamples of the scored rows; None if predictions are missing."""
        rows = self.method.data.splits["validation"]
        predictions = [answers for _, run in self.done if (answers := _predictions(run)) is not None]
        if not predictions or len(predictions) < len(self.done) or any(len(p) != len(rows) for p in predictions):
            return None
        table = resampled_scores(self.primary, rows.labels, predictions)
        return None if table is None else dict(zip(self.scores, table, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """The method's entry in comparison.json, without the parts that need other methods."""
        method, info = self.method, METHODS[self.method.variant.method]
        values = list(self.scores.values())
        interval = bootstrap_interval(values) if values else None
        best = [max(curve, key=lambda point: point[1]) for _, run in self.done if (curve := self._curve(run))]
        return {
            "method": method.variant.text,
            "name": info.name,
            "title": method.variant.title,
            "paper": info.paper,
            "implemented_by": info.implemented_by,
            "reconstructed": info.reconstructed,
            "fitted": method.is_fitted,
            "search": self._search(),
            "runs": [self._run(seed, run) for seed, run in method.finals],
            "n": len(values),
            "mean": interval.estimate if interval else None,
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            "interval": [interval.low, interval.high] if interval and len(values) > 1 else None,
            "best_epoch_mean": statistics.fmean(point[1] for point in best) if best else None,
            "costs": _costs([run for _, run in self.done]),
            "curve": self._mean_curve(),
        }

    def _search(self) -> dict[str, Any] | None:
        method = self.method
        if not method.space:
            return None
        tried = [settings for settings, _ in method.trials]
        return {
            "space": {name: list(bounds) for name, bounds in method.space.items()},
            "trials": [
                {
                    "settings": settings,
                    "score": run.metrics["metrics"].get(self.primary) if run.done else None,
                    "loss": run.metrics["metrics"].get("loss") if run.done else None,
                    "error": run.error,
                    "run": run.id,
                }
                for settings, run in method.trials
            ],
            "chosen": method.chosen,
            "at_the_edge": at_the_edge(method.chosen, method.space, tried) if method.chosen else None,
        }

    def _run(self, seed: int, run: FinishedRun) -> dict[str, Any]:
        return {
            "seed": seed,
            "run": run.id,
            "score": self.scores.get(seed),
            "metrics": run.metrics.get("metrics"),
            "epoch": (run.metrics.get("selected") or {}).get("epoch"),
            "error": run.error,
            "made_from": {key: run.metrics[key] for key in _MADE_FROM if key in run.metrics},
        }

    def _curve(self, run: FinishedRun) -> list[tuple[float, float]]:
        events = read_history(run.folder / HISTORY)
        return [
            (event.epoch, score)
            for event in events
            if isinstance(event, EvaluateEvent) and (score := event.metrics.get(self.primary)) is not None
        ]

    def _mean_curve(self) -> list[list[float]]:
        """[epoch, mean, smallest, largest] over the seeds, at the epochs that every seed has."""
        curves = [dict(self._curve(run)) for _, run in self.done]
        common = [epoch for epoch in (curves[0] if curves else {}) if all(epoch in curve for curve in curves)]
        points = [(epoch, [curve[epoch] for curve in curves]) for epoch in common]
        return [[epoch, statistics.fmean(values), min(values), max(values)] for epoch, values in points]


def _costs(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Medians over the runs; attaching takes the slowest run, the one that computed its decompositions."""
    if not runs:
        return {}
    metrics = [run.metrics for run in runs]
    seconds = [values["seconds"] for values in metrics]
    steps = [(values.get("last") or {}).get("step") or 0 for values in metrics]
    per_step = [times["train"] / count for times, count in zip(seconds, steps, strict=True) if count]
    retention = [values["retention"] for values in metrics if values.get("retention")]
    return {
        "trained_parameters": metrics[0]["trainable_parameters"],
        "head_parameters": metrics[0]["head_parameters"],
        "file_bytes": metrics[0].get("file_bytes", {}),
        "peak_memory_bytes": _median([values.get("peak_memory_bytes") for values in metrics]),
        "seconds_attach": max(times.get("attach", 0.0) for times in seconds),
        "seconds_per_step": _median(per_step),
        "seconds_train": _median([times.get("train") for times in seconds]),
        "seconds_total": _median([run.run.get("seconds") for run in runs]),
        "steps": steps[0],
        "retention": {
            "kind": retention[0]["kind"],
            "before": _median([values["before"] for values in retention]),
            "after": _median([values["after"] for values in retention]),
        }
        if retention
        else None,
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _predictions(run: FinishedRun) -> list[Any] | None:
    try:
        return json.loads((Path(run.folder) / PREDICTIONS).read_text(encoding="utf-8"))["predictions"]
    except (OSError, ValueError, KeyError):
        return None

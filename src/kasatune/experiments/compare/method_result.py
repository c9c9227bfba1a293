"""The result of one method on one task, read from the files of its runs: scores, intervals, learning curve, costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from kasatune.experiments.compare.endpoint_rows import Floats, endpoint_names, run_rows
from kasatune.experiments.compare.forgetting import FORGETTING, read_retention
from kasatune.experiments.compare.hyperparameter_search import at_the_edge
from kasatune.experiments.compare.method_on_task import MethodOnTask, TrialRuns
from kasatune.experiments.compare.run_store import FinishedRun
from kasatune.experiments.compare.verdict import lower_is_better
from kasatune.io.run_layout import HISTORY
from kasatune.methods.table import METHODS
from kasatune.metrics.seeds_by_rows import mean_of_seeds, mean_of_table
from kasatune.metrics.small_sample import interquartile_mean, proportion_interval
from kasatune.reports import formatting
from kasatune.runs.history import EvaluateEvent, read_history

_SHARES = ("accuracy", "acc", "acc_norm")
_MADE_FROM = ("recipe_sha256", "data_sha256", "model", "machine", "deterministic", "versions")


class MethodResult:
    """The scores of one method on one task.

    Args:
        method: the method on the task, with its finished runs.
    """

    def __init__(self, method: MethodOnTask) -> None:
        self.method = method
        self.task = method.data.name
        self.primary = method.data.primary
        self.endpoints = endpoint_names(self.task, self.primary, method.data.part_tasks)
        self._rows: dict[str, dict[int, Floats] | None] = {}
        self._rows_by_run: dict[tuple[str, str], Floats | None] = {}
        self.done = [(seed, run) for seed, run in method.finals if run.done]

    @cached_property
    def scores(self) -> dict[int, float]:
        """The main score of each seed that has one."""
        return self.values(self.primary)

    def values(self, metric: str) -> dict[int, float]:
        """A score of each seed that has it."""
        known = {seed: self._value(run, metric) for seed, run in self.done}
        return {seed: value for seed, value in known.items() if value is not None}

    def rows(self, metric: str) -> dict[int, Floats] | None:
        """The values of the rows of each seed, whose mean is the score; None if a run's files do not tell."""
        if metric not in self._rows:
            tables = {seed: self._rows_of(run, metric) for seed, run in self.done}
            complete = {seed: rows for seed, rows in tables.items() if rows is not None}
            lengths = {len(rows) for rows in complete.values()}
            self._rows[metric] = complete if len(complete) == len(tables) and len(lengths) == 1 else None
        return self._rows[metric]

    def summary(self, metric: str) -> dict[str, Any]:
        """Number of seeds, mean, standard deviation, interquartile mean and interval of a score."""
        values = self.values(metric)
        rows = self.rows(metric)
        return summary(metric, list(values.values()), None if rows is None else [rows[seed] for seed in values])

    def curves(self) -> dict[int, list[tuple[float, float, float]]]:
        """[(epoch, main score, forgetting)] of each seed, at the epochs that have both."""
        result = {}
        for seed, run in self.done:
            retention = read_retention(run.folder)
            if retention is not None:
                before = float(retention.before.mean())
                risen = {epoch: value - before for epoch, value in retention.epochs}
                result[seed] = [(epoch, score, risen[epoch]) for epoch, score in self._curve(run) if epoch in risen]
        return result

    def _value(self, run: FinishedRun, metric: str) -> float | None:
        retention = run.metrics.get("retention")
        if metric == FORGETTING:
            return None if retention is None else retention["after"] - retention["before"]
        if metric in run.metrics["metrics"]:
            return run.metrics["metrics"][metric]
        rows = self._rows_of(run, metric)
        return None if rows is None else float(rows.mean())

    def _rows_of(self, run: FinishedRun, metric: str) -> Floats | None:
        """The values of the rows of a run; computed once, since scores of texts take a second."""
        key = run.id, metric
        if key not in self._rows_by_run:
            self._rows_by_run[key] = run_rows(run.folder, self.task, metric)
        return self._rows_by_run[key]

    def as_dict(self) -> dict[str, Any]:
        """The method's entry in comparison.json, without the parts that need other methods."""
        method, info = self.method, METHODS[self.method.variant.method]
        pick = min if lower_is_better(self.primary) else max
        best = [pick(curve, key=lambda point: point[1]) for _, run in self.done if (curve := self._curve(run))]
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
            **self.summary(self.primary),
            "best_epoch_mean": statistics.fmean(point[1] for point in best) if best else None,
            "costs": _costs([run for _, run in self.done]),
            "curve": self._mean_curve(),
            "endpoints": {
                metric: {**self.summary(metric), "values": list(self.values(metric).values())}
                for metric in self.endpoints[1:]
            },
            "forgetting_curve": self._forgetting_curve(),
        }

    def _search(self) -> dict[str, Any] | None:
        method = self.method
        if not method.space:
            return None
        tried = [trial.settings for trial in method.trials]
        return {
            "space": {name: list(bounds) for name, bounds in method.space.items()},
            "trials": [self._trial(trial) for trial in method.trials],
            "chosen": method.chosen,
            "at_the_edge": at_the_edge(method.chosen, method.space, tried) if method.chosen else None,
        }

    def _trial(self, trial: TrialRuns) -> dict[str, Any]:
        means = trial.means(self.primary) or {}
        runs = [
            {
                "seed": seed,
                "run": run.id,
                "score": run.metrics["metrics"].get(self.primary) if run.done else None,
                "loss": run.metrics["metrics"].get("loss") if run.done else None,
                "error": run.error,
            }
            for seed, run in trial.runs
        ]
        return {
            "settings": trial.settings,
            "score": means.get(self.primary),
            "loss": means.get("loss"),
            "error": next((run["error"] for run in runs if run["error"]), None),
            "run": runs[0]["run"],
            "runs": runs,
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

    def _forgetting_curve(self) -> list[list[float]]:
        """[epoch, mean forgetting] over the seeds, at the epochs that every seed has."""
        curves = [{epoch: risen for epoch, _, risen in curve} for curve in self.curves().values()]
        common = [epoch for epoch in (curves[0] if curves else {}) if all(epoch in curve for curve in curves)]
        return [[epoch, statistics.fmean(curve[epoch] for curve in curves)] for epoch in common]


def summary(metric: str, values: Sequence[float], rows: Sequence[Floats] | None) -> dict[str, Any]:
    """Number of seeds, mean, standard deviation, interquartile mean and 95 % interval of a score.

    The interval counts seeds and rows as random (`mean_of_table`); it is Wilson's for a share of right answers, and cut
    at the ends of the score's range for others. Without values of the rows only seeds are random.

    Args:
        metric: name of the score.
        values: the score of each seed.
        rows: the values of the rows of each seed, or None.
    """
    many = len(values) > 1
    result = {
        "n": len(values),
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if many else None,
        "iqm": interquartile_mean(values) if values else None,
        "interval": None,
    }
    if many and all(math.isfinite(value) for value in values):
        mean = mean_of_seeds(values) if rows is None else replace(mean_of_table(rows), estimate=result["mean"])
        if formatting.score_name(metric) in _SHARES and rows is not None:
            result["interval"] = list(proportion_interval(mean))
        else:
            low, high = formatting.metric_range(metric) or (-math.inf, math.inf)
            result["interval"] = [max(low, mean.interval()[0]), min(high, mean.interval()[1])]
    return result


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
            "text": retention[0].get("text"),
            "tokens": retention[0].get("tokens"),
        }
        if retention
        else None,
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None

"""Scores of the runs of one method on one task, over seeds, read from their run directories."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kasatune.evaluation.multiple_choice import are_correct
from kasatune.experiments.reproduce.extra_split_scores import split_file
from kasatune.io.run_layout import HISTORY, PREDICTIONS
from kasatune.metrics.bootstrap import bootstrap_interval, resampled_scores, seeds_and_rows_interval
from kasatune.runs.history import EvaluateEvent, read_history
from kasatune.runs.metrics import read_metrics

_LAST = 10
_KEYS = {"accuracy": "written", "acc": "acc", "acc_norm": "acc_norm"}


@dataclass(frozen=True)
class Measured:
    """A score over the seeds.

    Attributes:
        values: the score of each seed.
        resampled: the score on resamples of the rows, (seeds, resamples); None if it cannot be recomputed.
        last: mean over the seeds of the last epoch's score.
        last_ten: mean over the last ten epochs and the seeds; None for shorter runs.
        epochs: the epoch of each seed's score.
        folders: the run directories.
    """

    values: tuple[float, ...]
    resampled: np.ndarray | None
    last: float | None = None
    last_ten: float | None = None
    epochs: tuple[float, ...] = ()
    folders: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval over rows and seeds, else over three seeds or more; None if there is neither."""
        if self.resampled is not None:
            interval = seeds_and_rows_interval(self.resampled, self.score)
            return interval.low, interval.high
        if len(self.values) > 2:
            interval = bootstrap_interval(self.values)
            return interval.low, interval.high
        return None


def measure(folders: Sequence[Path], metric: str, number: int, split: str | None = None) -> Measured | None:
    """The score `metric` of finished runs that differ only in their seeds; None if a run has no such score.

    Args:
        folders: the run directories, at least one.
        metric: name of the score.
        number: index of the task, used as the seed of its resamples: equal for two methods whose difference is taken,
            different for the tasks of an average.
        split: a split that was scored after training; None for the scores in metrics.json.
    """
    if split is not None:
        files = [split_file(folder, split) for folder in folders]
        if not all(path.is_file() for path in files):
            return None
        split_scores = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        if any(metric not in scores["metrics"] for scores in split_scores):
            return None
        return Measured(
            values=tuple(scores["metrics"][metric] for scores in split_scores),
            resampled=_resampled(split_scores, metric, number),
            folders=tuple(map(str, folders)),
        )
    records = [read_metrics(folder) for folder in folders]
    if any(metric not in record["metrics"] for record in records):
        return None
    curves = [_curve(folder, metric) for folder in folders]
    long = [curve for curve in curves if len(curve) > _LAST]
    last = [value for r in records if (value := (r.get("last") or {}).get("metrics", {}).get(metric)) is not None]
    return Measured(
        values=tuple(record["metrics"][metric] for record in records),
        resampled=_resampled([_read(folder / PREDICTIONS) for folder in folders], metric, number),
        last=statistics.fmean(last) if last else None,
        last_ten=statistics.fmean(statistics.fmean(curve[-_LAST:]) for curve in long) if long else None,
        epochs=tuple((record.get("selected") or {}).get("epoch", 0.0) for record in records),
        folders=tuple(map(str, folders)),
    )


def average(parts: Sequence[Measured]) -> Measured:
    """The mean over tasks; for its interval, the rows of each task are resampled independently."""
    tables = [part.resampled for part in parts]
    last = [part.last for part in parts if part.last is not None]
    return Measured(
        values=tuple(statistics.fmean(values) for values in zip(*(part.values for part in parts), strict=True)),
        resampled=_mean(tables),
        last=statistics.fmean(last) if len(last) == len(parts) else None,
    )


def difference(first: Measured, second: Measured) -> Measured:
    """First minus second, on the same rows and seeds."""
    resampled = None
    if first.resampled is not None and second.resampled is not None:
        resampled = first.resampled - second.resampled
    return Measured(
        values=tuple(a - b for a, b in zip(first.values, second.values, strict=True)),
        resampled=resampled,
        last=first.last - second.last if first.last is not None and second.last is not None else None,
    )


def _mean(tables: Sequence[np.ndarray | None]) -> np.ndarray | None:
    present = [table for table in tables if table is not None]
    return np.mean(present, axis=0) if present and len(present) == len(tables) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _resampled(records: Sequence[dict[str, Any]], metric: str, number: int) -> np.ndarray | None:
    """The score on resamples of the rows, from labels and predictions of each seed; None if it is a corpus score."""
    labels = records[0].get("labels")
    if not labels or any(record.get("labels") != labels for record in records):
        return None
    predicted = [record["predictions"] for record in records]
    if isinstance(labels[0], list):  # text: an answer is right or wrong; other scores are defined on the corpus only
        if metric not in _KEYS or not records[0].get("scores"):
            return None
        predicted = [are_correct(r["inputs"], r["labels"], r["scores"], _KEYS[metric]) for r in records]
        labels, metric = [True] * len(predicted[0]), "accuracy"
    return resampled_scores(metric, labels, predicted, seed=number)


def _curve(folder: Path, metric: str) -> list[float]:
    events = read_history(folder / HISTORY)
    values = [event.metrics.get(metric) for event in events if isinstance(event, EvaluateEvent)]
    return [value for value in values if value is not None]

"""What the runs of one method on one task came to, read from their directories."""

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
from kasatune.runs.history import EvaluateEvent, History
from kasatune.runs.metrics import read_metrics

_LAST = 10
_KEYS = {"accuracy": "written", "acc": "acc", "acc_norm": "acc_norm"}


@dataclass(frozen=True)
class Measured:
    """A score over the seeds.

    Attributes:
        values: of each seed.
        resampled: the same on resamples of the scored rows, (seeds, resamples); None where it cannot be had.
        last: of the last epoch, the mean over the seeds.
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
        """Its 95 % interval over rows and seeds, or over three seeds or more; None where neither can be had."""
        if self.resampled is not None:
            found = seeds_and_rows_interval(self.resampled, self.score)
            return found.low, found.high
        if len(self.values) > 2:
            found = bootstrap_interval(self.values)
            return found.low, found.high
        return None


def measure(folders: Sequence[Path], metric: str, number: int, split: str | None = None) -> Measured | None:
    """The score `metric` of finished runs that differ in their seeds alone; None where a run has no such score.

    Args:
        folders: the run directories, at least one.
        metric: name of the score.
        number: of the task, the seed of its resamples: equal for what is subtracted, another for each task of an
            average.
        split: rows that were scored after training; None for the run's own scores.
    """
    if split is not None:
        files = [split_file(folder, split) for folder in folders]
        if not all(path.is_file() for path in files):
            return None
        told = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        if any(metric not in one["metrics"] for one in told):
            return None
        return Measured(
            values=tuple(one["metrics"][metric] for one in told),
            resampled=_resampled(told, metric, number),
            folders=tuple(map(str, folders)),
        )
    found = [read_metrics(folder) for folder in folders]
    if any(metric not in one["metrics"] for one in found):
        return None
    curves = [_curve(folder, metric) for folder in folders]
    long = [curve for curve in curves if len(curve) > _LAST]
    last = [value for one in found if (value := (one.get("last") or {}).get("metrics", {}).get(metric)) is not None]
    return Measured(
        values=tuple(one["metrics"][metric] for one in found),
        resampled=_resampled([_read(folder / PREDICTIONS) for folder in folders], metric, number),
        last=statistics.fmean(last) if last else None,
        last_ten=statistics.fmean(statistics.fmean(curve[-_LAST:]) for curve in long) if long else None,
        epochs=tuple((one.get("selected") or {}).get("epoch", 0.0) for one in found),
        folders=tuple(map(str, folders)),
    )


def average(parts: Sequence[Measured]) -> Measured:
    """The mean over tasks; its interval draws the rows of each task for themselves."""
    tables = [one.resampled for one in parts]
    last = [one.last for one in parts if one.last is not None]
    return Measured(
        values=tuple(statistics.fmean(values) for values in zip(*(one.values for one in parts), strict=True)),
        resampled=_joined(tables),
        last=statistics.fmean(last) if len(last) == len(parts) else None,
    )


def difference(first: Measured, second: Measured) -> Measured:
    """What the first is better by than the second, on the same rows and seeds."""
    both = first.resampled is not None and second.resampled is not None
    return Measured(
        values=tuple(a - b for a, b in zip(first.values, second.values, strict=True)),
        resampled=first.resampled - second.resampled if both else None,  # type: ignore[operator]
        last=first.last - second.last if first.last is not None and second.last is not None else None,
    )


def _joined(tables: Sequence[np.ndarray | None]) -> np.ndarray | None:
    there = [one for one in tables if one is not None]
    return np.mean(there, axis=0) if there and len(there) == len(tables) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _resampled(told: Sequence[dict[str, Any]], metric: str, number: int) -> np.ndarray | None:
    """The score on resamples of the rows, from labels and predictions of each seed."""
    labels = told[0].get("labels")
    if not labels or any(one.get("labels") != labels for one in told):
        return None
    given = [one["predictions"] for one in told]
    if isinstance(labels[0], list):  # text: answers are right or wrong, other scores are the corpus's
        if metric not in _KEYS or not told[0].get("scores"):
            return None
        given = [are_correct(one["inputs"], one["labels"], one["scores"], _KEYS[metric]) for one in told]
        labels, metric = [True] * len(given[0]), "accuracy"
    return resampled_scores(metric, labels, given, seed=number)


def _curve(folder: Path, metric: str) -> list[float]:
    events = History(folder / HISTORY).events()
    values = [event.metrics.get(metric) for event in events if isinstance(event, EvaluateEvent)]
    return [value for value in values if value is not None]

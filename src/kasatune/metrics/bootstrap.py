"""Bootstrap: percentile intervals of a mean, paired differences, and scores on resampled rows and seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Values = Sequence[float] | Sequence[bool] | Array

RESAMPLES = 2000
_CELLS_AT_ONCE = 4_000_000
_SCORE_CELLS_AT_ONCE = 8_000_000


class Interval(NamedTuple):
    """An estimate and the bounds of its interval."""

    estimate: float
    low: float
    high: float


def bootstrap_interval(values: Values, n: int = 10_000, seed: int = 0, level: float = 0.95) -> Interval:
    """mean(values) and the central `level` of the means of `n` resamples of the rows (Efron's percentile interval).

    A resample of N rows with replacement is one multinomial draw of how often each distinct value occurs, so it costs
    as many numbers as there are distinct values: two for correct or not.

    Args:
        values: one number per row, (rows,): 1 or 0 for correct or not, or a score.
        n: number of resamples.
        seed: of the draws; equal seeds give equal intervals.
        level: share of the resampled means inside the interval.

    Raises:
        ValueError: there are no rows, a value is not finite, or `n` or `level` is out of range.
    """
    rows: Floats = np.asarray(values, dtype=np.float64)
    if rows.ndim != 1 or not len(rows):
        raise ValueError(f"values must be one number per row, with at least one row; their shape is {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError("values must be finite; one is NaN or infinite")
    if n < 1 or not 0 < level < 1:
        raise ValueError(f"n must be at least 1 and level between 0 and 1; they are {n} and {level}")
    distinct, counts = np.unique(rows, return_counts=True)
    generator = np.random.default_rng(seed)
    means = np.empty(n)
    step = max(1, _CELLS_AT_ONCE // len(distinct))
    for start in range(0, n, step):
        draws = generator.multinomial(len(rows), counts / len(rows), size=min(step, n - start))
        means[start : start + step] = draws @ distinct / len(rows)
    return _with_bounds(float(rows.mean()), means, level)


def paired_bootstrap(
    correct_a: Values, correct_b: Values, n: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """mean(a - b) over the same rows and its bootstrap interval; the difference is significant if it excludes 0.

    Args:
        correct_a: score of the first system on each row, (rows,): 1 or 0 for correct or not, or a score.
        correct_b: score of the second system on the same rows, in the same order.
        n: number of resamples of the rows.
        seed: of the draws.
        level: see `bootstrap_interval`.

    Raises:
        ValueError: the numbers of rows differ, or see `bootstrap_interval`.
    """
    a, b = np.asarray(correct_a, dtype=np.float64), np.asarray(correct_b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"both systems must be scored on the same rows; their shapes are {a.shape} and {b.shape}")
    return bootstrap_interval(a - b, n, seed, level)


def resampled_scores(
    metric: str,
    labels: Sequence[Any] | Array,
    predictions: Sequence[Sequence[Any]] | Array,
    n: int = RESAMPLES,
    seed: int = 0,
) -> Floats | None:
    """The score of each set of predictions on `n` resamples of the rows with replacement, (sets, n).

    A resample is a weight for each row, how often it was drawn. Equal numbers of rows, `n` and `seed` give equal
    resamples, so two results for the same rows can be subtracted column by column.

    Args:
        metric: "accuracy", "matthews_correlation" or "pearson"; or "mean", for predictions that are themselves scores
            (labels are ignored). The result is None for any other score.
        labels: the right answers, (rows,).
        predictions: (sets, rows), one set per run.
        n: number of resamples.
        seed: of the draws.

    Raises:
        ValueError: there are no rows, or the numbers of rows differ.
    """
    if metric not in WEIGHTED_SCORES:
        return None
    expected, predicted = np.asarray(labels), np.asarray(predictions)
    if predicted.ndim != 2 or predicted.shape[1] != len(expected) or not len(expected):
        raise ValueError(
            f"one prediction per row is needed; predictions are {predicted.shape}, labels {expected.shape}"
        )
    generator = np.random.default_rng(seed)
    scores = np.empty((len(predicted), n))
    step = max(1, _SCORE_CELLS_AT_ONCE // len(expected))
    share = np.full(len(expected), 1 / len(expected))
    for start in range(0, n, step):
        weights = generator.multinomial(len(expected), share, size=min(step, n - start)).astype(np.float64)
        for index, row in enumerate(predicted):
            scores[index, start : start + step] = WEIGHTED_SCORES[metric](weights, expected, row)
    return scores


def seeds_and_rows_interval(table: Floats, estimate: float, seed: int = 0, level: float = 0.95) -> Interval:
    """`estimate` and the central `level` of its distribution over resampled rows and resampled seeds.

    Args:
        table: (seeds, n): a score, or a difference of scores, of every seed on every resample of the rows.
        estimate: its mean over the seeds on the original rows.
        seed: of the draws of seeds.
        level: share of the distribution inside the interval.
    """
    seeds, n = table.shape
    drawn = np.random.default_rng(seed).integers(seeds, size=(n, seeds))
    means: Floats = table[drawn, np.arange(n)[:, None]].mean(axis=1)
    return _with_bounds(float(estimate), means, level)


def _with_bounds(estimate: float, means: Floats, level: float) -> Interval:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high))


def _accuracy(weights: Floats, labels: Array, predictions: Array) -> Floats:
    return weights @ (labels == predictions) / len(labels)


def _matthews_correlation(weights: Floats, labels: Array, predictions: Array) -> Floats:
    """Gorodkin's R_K from the weighted counts; 0 if labels or predictions are constant."""
    rows = len(labels)
    classes = range(int(max(labels.max(), predictions.max())) + 1)
    correct = weights @ (labels == predictions)
    true = np.stack([weights @ (labels == k) for k in classes])
    given = np.stack([weights @ (predictions == k) for k in classes])
    numerator = correct * rows - (true * given).sum(axis=0)
    denominator = np.sqrt((rows**2 - (given**2).sum(axis=0)) * (rows**2 - (true**2).sum(axis=0)))
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _pearson(weights: Floats, labels: Array, predictions: Array) -> Floats:
    """cov(x, y) / (std(x) std(y)) with weights; 0 if either is constant."""
    rows = len(labels)
    x, y = labels - labels.mean(), predictions - predictions.mean()
    mean_x, mean_y = weights @ x / rows, weights @ y / rows
    covariance = weights @ (x * y) / rows - mean_x * mean_y
    variance_x = weights @ (x * x) / rows - mean_x**2
    variance_y = weights @ (y * y) / rows - mean_y**2
    denominator = np.sqrt(np.clip(variance_x, 0, None) * np.clip(variance_y, 0, None))
    return np.divide(covariance, denominator, out=np.zeros_like(covariance), where=denominator > 1e-300)


def _mean(weights: Floats, labels: Array, predictions: Array) -> Floats:
    return weights @ predictions / len(predictions)


WEIGHTED_SCORES: dict[str, Callable[[Floats, Array, Array], Floats]] = {
    "accuracy": _accuracy,
    "matthews_correlation": _matthews_correlation,
    "pearson": _pearson,
    "mean": _mean,
}
"""Scores of weighted rows by name: (weights (n, rows) that sum to rows, labels, predictions) -> (n,)."""

"""Scores on resamples of the scored rows, the same resamples for everything that is scored on these rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kasatune.metrics.intervals import Interval

_CELLS_AT_ONCE = 8_000_000
RESAMPLES = 2000


def resampled_scores(
    metric: str,
    labels: Sequence[Any] | np.ndarray,
    predictions: Sequence[Sequence[Any]] | np.ndarray,
    n: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray | None:
    """The score of each set of predictions on `n` resamples of the rows with replacement, (sets, n).

    A resample is a weight for each row, how often it was drawn; equal numbers of rows, `n` and `seed` give equal
    resamples, so that two results for the same rows can be subtracted column by column.

    Args:
        metric: "accuracy", "matthews_correlation" or "pearson"; "mean" of predictions that are scores themselves,
            whatever the labels are; for any other the result is None.
        labels: the right answers, (rows,).
        predictions: (sets, rows): one set a run.
        n: resamples.
        seed: of the draws.

    Raises:
        ValueError: there are no rows, or the numbers of rows differ.
    """
    if metric not in _SCORES:
        return None
    right, given = np.asarray(labels), np.asarray(predictions)
    if given.ndim != 2 or given.shape[1] != len(right) or not len(right):
        raise ValueError(f"one prediction a row is needed: {given.shape} against {right.shape}")
    generator = np.random.default_rng(seed)
    result = np.empty((len(given), n))
    step = max(1, _CELLS_AT_ONCE // len(right))
    share = np.full(len(right), 1 / len(right))
    for start in range(0, n, step):
        weights = generator.multinomial(len(right), share, size=min(step, n - start)).astype(np.float64)
        for place, one in enumerate(given):
            result[place, start : start + step] = _SCORES[metric](weights, right, one)
    return result


def seeds_and_rows_interval(table: np.ndarray, estimate: float, seed: int = 0, level: float = 0.95) -> Interval:
    """`estimate` with the central `level` of its distribution over resampled rows and resampled seeds.

    Args:
        table: (seeds, n): a score, or a difference of scores, of every seed on every resample of the rows.
        estimate: its mean over the seeds on the rows as they are.
        seed: of the draws of seeds.
        level: share of the distribution that the interval holds.
    """
    seeds, n = table.shape
    drawn = np.random.default_rng(seed).integers(seeds, size=(n, seeds))
    means = table[drawn, np.arange(n)[:, None]].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high))


def _accuracy(weights: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    return weights @ (labels == predictions) / len(labels)


def _matthews_correlation(weights: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Gorodkin's R_K from the weighted counts; 0 where labels or predictions are constant."""
    rows = len(labels)
    classes = range(int(max(labels.max(), predictions.max())) + 1)
    right = weights @ (labels == predictions)
    true = np.stack([weights @ (labels == k) for k in classes])
    given = np.stack([weights @ (predictions == k) for k in classes])
    above = right * rows - (true * given).sum(axis=0)
    below = np.sqrt((rows**2 - (given**2).sum(axis=0)) * (rows**2 - (true**2).sum(axis=0)))
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _pearson(weights: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Cov(x, y) / (std(x) std(y)) with weights; 0 where either is constant."""
    rows = len(labels)
    x, y = labels - labels.mean(), predictions - predictions.mean()
    mean_x, mean_y = weights @ x / rows, weights @ y / rows
    covariance = weights @ (x * y) / rows - mean_x * mean_y
    variance_x = weights @ (x * x) / rows - mean_x**2
    variance_y = weights @ (y * y) / rows - mean_y**2
    below = np.sqrt(np.clip(variance_x, 0, None) * np.clip(variance_y, 0, None))
    return np.divide(covariance, below, out=np.zeros_like(covariance), where=below > 1e-300)


def _mean(weights: np.ndarray, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    return weights @ predictions / len(predictions)


_SCORES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "accuracy": _accuracy,
    "matthews_correlation": _matthews_correlation,
    "pearson": _pearson,
    "mean": _mean,
}

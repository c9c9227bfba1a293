"""How sure a score is: percentile bootstrap intervals over the rows of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_CELLS_AT_ONCE = 4_000_000


class Interval(NamedTuple):
    """An estimate with the interval it lies in."""

    estimate: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float] | Sequence[bool] | np.ndarray, n: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """mean(values), with the central `level` of the means of `n` resamples of the rows (Efron's percentile interval).

    A resample of N rows with replacement is one multinomial draw of how often each distinct value occurs, so a draw
    costs as many numbers as there are distinct values: two for right and wrong.

    Args:
        values: one number a row, (rows,): right or wrong as 1 or 0, or a score.
        n: resamples.
        seed: of the draws; equal seeds give equal intervals.
        level: share of the resampled means that the interval holds.

    Raises:
        ValueError: there are no rows, a value is not finite, or `n` or `level` is out of range.
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 1 or not len(rows):
        raise ValueError(f"one value a row and one row at least are needed, not the shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError("a value is NaN or infinite")
    if n < 1 or not 0 < level < 1:
        raise ValueError(f"n must be 1 or more and level between 0 and 1, not {n} and {level}")
    distinct, counts = np.unique(rows, return_counts=True)
    generator = np.random.default_rng(seed)
    means = np.empty(n)
    step = max(1, _CELLS_AT_ONCE // len(distinct))
    for start in range(0, n, step):
        draws = generator.multinomial(len(rows), counts / len(rows), size=min(step, n - start))
        means[start : start + step] = draws @ distinct / len(rows)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(rows.mean()), float(low), float(high))


def paired_bootstrap(
    correct_a: Sequence[float] | Sequence[bool] | np.ndarray,
    correct_b: Sequence[float] | Sequence[bool] | np.ndarray,
    n: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """mean(a - b) over the same rows, with its bootstrap interval; one that excludes 0 tells the two apart.

    Args:
        correct_a: what the first is worth on each row, (rows,): right or wrong, or a score.
        correct_b: what the second is worth on the same rows, in the same order.
        n: resamples of the rows.
        seed: of the draws.
        level: as `bootstrap_interval` has it.

    Returns:
        (difference, low, high).

    Raises:
        ValueError: the rows differ in number, or as `bootstrap_interval` has it.
    """
    a, b = np.asarray(correct_a, dtype=np.float64), np.asarray(correct_b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"both must be scored on the same rows: {a.shape} against {b.shape}")
    return bootstrap_interval(a - b, n, seed, level)

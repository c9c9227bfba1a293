"""Values of the rows whose mean is a score, so that scores of any kind can be analysed row by row.

A share of right answers is a mean over rows already. A ratio of sums, such as the loss per token, is linearized. A
correlation or F1 has no value per row: its rows have jackknife pseudo-values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kasatune.metrics.bootstrap import WEIGHTED_SCORES

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

MOST_GROUPS = 1000
"""The most groups of rows of a score that has no value per row."""
_SEED = 0


def row_values(metric: str, labels: Sequence[Any] | Array, predictions: Sequence[Any] | Array) -> Floats | None:
    """One value for each row, or group of rows, whose mean is the score; None for a score that is not known here.

    For "accuracy" and "mean" a value is that of its row. For "matthews_correlation" and "pearson" it is the jackknife
    pseudo-value G score - (G - 1) score_without_g, shifted so that the mean is the score; above 1,000 rows, rows are
    drawn into 1,000 groups g, the same for every set of predictions of as many rows.

    Args:
        metric: name of the score.
        labels: the right answers, (rows,).
        predictions: predicted classes or numbers, (rows,).

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 11.

    Raises:
        ValueError: there are fewer than two rows, or the numbers of rows differ.
    """
    expected, predicted = np.asarray(labels), np.asarray(predictions)
    if expected.shape != predicted.shape or expected.ndim != 1 or len(expected) < 2:
        raise ValueError(
            f"one prediction per label is needed, and two rows; predictions are {predicted.shape}, labels "
            f"{expected.shape}"
        )
    if metric == "accuracy":
        return np.asarray(expected == predicted, dtype=np.float64)
    if metric == "mean":
        return np.asarray(predicted, dtype=np.float64)
    if metric not in WEIGHTED_SCORES:
        return None
    rows = len(expected)
    groups = min(rows, MOST_GROUPS)
    member = np.arange(rows)
    if groups < rows:
        member = np.random.default_rng(_SEED).permutation(rows) % groups
    score = WEIGHTED_SCORES[metric]
    whole = float(score(np.ones((1, rows)), expected, predicted)[0])
    without = np.empty(groups)
    for group in range(groups):
        left = (member != group).astype(np.float64)
        without[group] = score((left * (rows / left.sum()))[None, :], expected, predicted)[0]
    values: Floats = groups * whole - (groups - 1) * without
    return values - values.mean() + whole


def ratio_values(sums: Sequence[float] | Array, counts: Sequence[float] | Array) -> Floats:
    """Linearized values of sum(sums) / sum(counts): (s_r - R n_r) / mean(n) + R, whose mean is the ratio R.

    Args:
        sums: numerator of each row, such as the sum of its tokens' losses.
        counts: denominator of each row, such as its number of tokens; not negative.

    Source: Cochran, Sampling Techniques (1977), chapter 6.

    Raises:
        ValueError: the lengths differ, or the denominators are all 0.
    """
    numerators, denominators = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if numerators.shape != denominators.shape or not denominators.sum() > 0:
        raise ValueError(
            f"as many counts as sums are needed, not all 0; they are {denominators.shape} and {numerators.shape}"
        )
    ratio = numerators.sum() / denominators.sum()
    values: Floats = (numerators - ratio * denominators) / denominators.mean() + ratio
    return values

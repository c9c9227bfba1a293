"""Tests of paired differences, and their correction for many of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def paired_t(differences: Sequence[float]) -> float | None:
    """The two-sided p of Student's paired t-test: t = mean(d) / (std(d) / sqrt(n)), n - 1 degrees of freedom.

    It takes the differences for normally distributed. The tests that do not, signs, ranks or permutations, cannot give
    a p below 2 / 2^n: 0.06 with five seeds.

    Args:
        differences: one a seed, scores of one method minus those of another.

    Returns:
        p; 1 where all differences are 0; None where it cannot be had: fewer than two, or all the same and not 0.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return None
    if np.ptp(values) == 0:
        return 1.0 if values[0] == 0 else None
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(values, 0.0).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p'_(i) = max over j <= i of min(1, (m - j + 1) p_(j)), in the order of the input.

    The chance that any of the differences so found is none stays below the level, however the tests depend on each
    other (Holm, Scandinavian Journal of Statistics 6, 1979).
    """
    number = len(p_values)
    order = sorted(range(number), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * number, 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (number - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted

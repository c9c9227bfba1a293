"""The paired t-test, and Holm's correction for multiple tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def paired_t(differences: Sequence[float]) -> float | None:
    """Two-sided p of Student's paired t-test: t = mean(d) / (std(d) / sqrt(n)), n - 1 degrees of freedom.

    The test assumes normally distributed differences. Tests without this assumption (sign, rank, permutation) cannot
    reach a p below 2 / 2^n: 0.06 with five seeds.

    Args:
        differences: one per seed, the score of one method minus that of another.

    Returns:
        p; 1 if all differences are 0; None if it is undefined: fewer than two differences, or all equal and not 0.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return None
    if np.ptp(values) == 0:
        return 1.0 if values[0] == 0 else None
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(values, 0.0).pvalue)  # pyright: ignore[reportAttributeAccessIssue] - a named tuple


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p'_(i) = max over j <= i of min(1, (m - j + 1) p_(j)), in the order of the input.

    Rejecting where p' is below the level keeps the probability of any false rejection below the level, whatever the
    dependence between the tests (Holm, Scandinavian Journal of Statistics 6, 1979).
    """
    number = len(p_values)
    order = sorted(range(number), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * number, 0.0
    for position, index in enumerate(order):
        largest = max(largest, min(1.0, (number - position) * p_values[index]))
        adjusted[index] = largest
    return adjusted

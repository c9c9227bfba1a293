"""Summaries of few numbers: intervals of proportions (Wilson), the interquartile mean, detectable differences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kasatune.metrics.seeds_by_rows import MeanOfTable


def wilson_interval(share: float, number: float, quantile: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a proportion: it stays within 0 and 1 and has a width at 0 and 1.

    center -+ half with center = (p + z^2 / 2n) / (1 + z^2 / n) and
    half = z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n).

    Args:
        share: the proportion p, between 0 and 1.
        number: the number of observations n, or the effective number of correlated ones; above 0.
        quantile: z, by default of a 95 % interval.

    Source: Wilson, Journal of the American Statistical Association 22 (1927).

    Raises:
        ValueError: `share` or `number` is out of range.
    """
    if not 0 <= share <= 1 or not number > 0:
        raise ValueError(f"a share between 0 and 1 and a number above 0 are needed; they are {share} and {number}")
    square = quantile**2 / number
    center = (share + square / 2) / (1 + square)
    half = quantile * math.sqrt(share * (1 - share) / number + square / (4 * number)) / (1 + square)
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))


def proportion_interval(mean: MeanOfTable, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of the mean of a table of zeros and ones whose seeds and rows are random.

    The effective number of observations is p (1 - p) / standard_error^2, as for complex samples in surveys, and z is
    the quantile of t with the table's degrees of freedom. If nothing varies, as when every answer is right, the seeds
    add no information and the number is that of the rows (of the seeds, if rows are held fixed).

    Source: Dean and Pagano, Journal of Survey Statistics and Methodology 3 (2015).
    """
    from scipy.special import stdtrit

    share, largest = min(max(mean.estimate, 0.0), 1.0), max(mean.rows, 1) * mean.seeds
    spread = share * (1 - share)
    if mean.standard_error == 0 or spread == 0:
        number = float(mean.rows or mean.seeds)
        return wilson_interval(share, number, float(stdtrit(max(number - 1, 1), (1 + level) / 2)))
    number = min(spread / mean.standard_error**2, float(largest))
    return wilson_interval(share, number, float(stdtrit(mean.df, (1 + level) / 2)))


def interquartile_mean(values: Sequence[float]) -> float:
    """The mean without the floor(n / 4) smallest and the floor(n / 4) largest values; the mean if n < 4.

    Source: Agarwal et al., arXiv 2108.13264.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("at least one value is needed")
    cut = len(values) // 4
    middle = sorted(values)[cut : len(values) - cut]
    return math.fsum(middle) / len(middle)


def detectable_effect(df: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true mean, in standard errors, that a two-sided t-test at `alpha` shows with probability `power`.

    It is the noncentrality d with P(|T_df(d)| > t_(df, 1 - alpha/2)) = power. A paired test over n seeds therefore
    shows d / sqrt(n) standard deviations of the paired differences: 1.68 with five seeds, 1.00 with ten.

    Raises:
        ValueError: an argument is out of range.
    """
    from scipy.optimize import brentq
    from scipy.special import gammaincinv, ndtr, stdtrit

    if not df > 0 or not 0 < alpha < power < 1:
        raise ValueError(f"df > 0 and 0 < alpha < power < 1 are needed; they are {df}, {alpha} and {power}")
    # P(|T| > c) = E[P(|Z + d| > c S)] with S^2 = chi^2_df / df, integrated over the quantiles of S: scipy's noncentral
    # t is NaN for few degrees of freedom.
    nodes, weights = np.polynomial.legendre.leggauss(400)
    bounds = stdtrit(df, 1 - alpha / 2) * np.sqrt(2 * gammaincinv(df / 2, (nodes + 1) / 2) / df)

    def missing(effect: float) -> float:
        return float(weights @ (ndtr(effect - bounds) + ndtr(-effect - bounds))) / 2 - power

    highest = 2.0
    while missing(highest) < 0:
        highest *= 2
    return float(brentq(missing, 0.0, highest, xtol=1e-6))  # pyright: ignore[reportArgumentType] - returns a float

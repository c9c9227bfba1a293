"""Bootstrap intervals against scipy, the normal approximation, and resampling row by row."""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from kasatune.metrics import bootstrap_interval, paired_bootstrap


def test_the_interval_of_a_proportion_is_close_to_the_normal_approximation():
    right = np.zeros(2000)
    right[:1500] = 1
    estimate, low, high = bootstrap_interval(right)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 2000)
    assert estimate == 0.75
    assert low == pytest.approx(0.75 - half, abs=0.002)
    assert high == pytest.approx(0.75 + half, abs=0.002)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_interval_is_that_of_scipy(level):
    """Two seeds of 20,000 resamples each differ by less than 1 % of the interval's width."""
    values = np.random.default_rng(7).gamma(1.0, size=60)
    theirs = bootstrap(
        (values,),
        np.mean,
        n_resamples=20_000,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(8),
    ).confidence_interval
    _, low, high = bootstrap_interval(values, n=20_000, level=level)
    assert [low, high] == pytest.approx([theirs.low, theirs.high], abs=0.02 * (theirs.high - theirs.low))


def test_the_paired_interval_is_that_of_scipy():
    draw = np.random.default_rng(9)
    a, b = draw.random(200) < 0.8, draw.random(200) < 0.7
    theirs = bootstrap(
        (a.astype(float), b.astype(float)),
        lambda x, y, axis: (x - y).mean(axis=axis),
        n_resamples=20_000,
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(10),
    ).confidence_interval
    _, low, high = paired_bootstrap(a, b, n=20_000)
    assert [low, high] == pytest.approx([theirs.low, theirs.high], abs=1 / 200)


def test_agrees_with_resampling_the_rows_one_by_one():
    values = np.random.default_rng(3).gamma(1.0, size=40)
    generator = np.random.default_rng(4)
    means = [values[generator.integers(0, 40, 40)].mean() for _ in range(20_000)]
    estimate, low, high = bootstrap_interval(values, n=20_000)
    assert estimate == pytest.approx(values.mean())
    assert [low, high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.02)


def test_pairing_narrows_the_interval_of_the_difference():
    generator = np.random.default_rng(0)
    b = generator.random(1000) < 0.7
    a = b.copy()
    a[np.flatnonzero(~b)[:30]] = True
    difference, low, high = paired_bootstrap(a, b)
    assert difference == pytest.approx(0.03)
    assert 0 < low < 0.03 < high < 0.05
    assert paired_bootstrap(b, a).estimate == pytest.approx(-0.03)
    shuffled = paired_bootstrap(a, generator.permutation(b))
    assert shuffled.low < 0 < shuffled.high


def test_equal_answers_give_an_interval_of_width_zero():
    assert paired_bootstrap([1, 0, 1], [1, 0, 1]) == (0.0, 0.0, 0.0)


def test_equal_seeds_give_equal_intervals():
    values = np.random.default_rng(1).random(50)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_a_higher_level_widens_the_interval():
    values = np.random.default_rng(1).random(50)
    narrow, wide = bootstrap_interval(values, level=0.5), bootstrap_interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "at least one row"),
        ([1.0, math.nan], {}, "NaN"),
        ([1.0], {"n": 0}, "n must"),
        ([1], {"level": 1}, "level"),
    ],
)
def test_misuse_is_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, **options)


def test_different_numbers_of_rows_are_refused():
    with pytest.raises(ValueError, match="same rows"):
        paired_bootstrap([1, 0], [1, 0, 1])

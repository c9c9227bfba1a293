"""Inference on seeds x rows against closed forms, scipy, and simulated rates of false and true rejections."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import nct, ttest_1samp, ttest_rel
from scipy.stats import t as student

from kasatune.metrics.seeds_by_rows import mean_of_seeds, mean_of_table, planned_standard_error
from kasatune.metrics.small_sample import detectable_effect


def draw(generator, seeds, rows, seed_sd, row_sd, sd, mean=0.0):
    a, b = generator.normal(0, seed_sd, (seeds, 1)), generator.normal(0, row_sd, (1, rows))
    return mean + a + b + generator.normal(0, sd, (seeds, rows))


@pytest.mark.parametrize("seed", range(10))
def test_the_mean_of_seeds_is_scipys_paired_t_test(seed):
    a, b = np.random.default_rng(seed).normal(0.8, 0.02, size=(2, 2 + seed))
    mean, expected = mean_of_seeds(list(a - b)), ttest_rel(a, b)
    assert mean.p_differs() == pytest.approx(expected.pvalue, rel=1e-9)
    assert mean.interval() == pytest.approx(tuple(expected.confidence_interval()), rel=1e-9)
    above = ttest_1samp(a - b, -0.01, alternative="greater").pvalue
    below = ttest_1samp(a - b, 0.01, alternative="less").pvalue
    assert mean.p_above(-0.01) == pytest.approx(above, rel=1e-9)
    assert mean.p_equivalent(0.01) == pytest.approx(max(above, below), rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_90_percent_interval_lies_inside_the_margin_exactly_if_the_tost_rejects_at_5_percent(seed):
    mean = mean_of_seeds(list(np.random.default_rng(seed).normal(0.002, 0.01, 6)))
    low, high = mean.interval(0.9)
    edge = max(-low, high)
    assert mean.p_equivalent(edge * 1.0001) < 0.05 < mean.p_equivalent(edge * 0.9999)


def test_the_mean_squares_on_an_example_by_hand():
    # Rows 1, 2, 3 and 3, 2, 7: means 2 and 4 of seeds, 2, 2, 5 of rows; MS_s = 6, MS_r = 6, MS_e = 2.
    mean = mean_of_table([[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]])
    assert mean.estimate == 3
    assert mean.standard_error == pytest.approx(((6 + 6 - 2) / 6) ** 0.5)
    assert (mean.seed_variance, mean.row_variance, mean.residual_variance) == pytest.approx((4 / 3, 2, 2))
    assert mean.df == pytest.approx((6 + 4) ** 2 / (6**2 / 1 + 4**2 / 2))


def test_without_row_effects_the_result_is_the_t_test_over_the_means_of_seeds():
    generator = np.random.default_rng(0)
    table = draw(generator, 6, 400, 1.0, 0.0, 0.5)
    table -= table.mean(axis=0) - table.mean()  # rows without any effect: MS_r = 0
    mean, expected = mean_of_table(table), ttest_1samp(table.mean(axis=1), 0.0)
    assert mean.p_differs() == pytest.approx(expected.pvalue, rel=1e-6)
    assert mean.df == pytest.approx(5)


def test_nothing_varies():
    same = mean_of_table(np.zeros((3, 5)))
    assert same.p_differs() == 1.0 and same.p_equivalent(0.01) == 0.0 and same.interval() == (0.0, 0.0)
    shifted = mean_of_table(np.full((3, 5), 0.1))
    assert shifted.p_differs() is None and shifted.p_equivalent(0.2) is None


@pytest.mark.parametrize("values", [[[1.0, 2.0]], [[1.0], [2.0]], [[1.0, float("nan")], [2.0, 3.0]]])
def test_tables_that_are_too_small_or_not_finite_are_refused(values):
    with pytest.raises(ValueError, match="table"):
        mean_of_table(values)
    with pytest.raises(ValueError, match=r"seed|finite"):
        mean_of_seeds([1.0] if len(values) == 1 else [1.0, float("nan")])


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize(("of_seeds", "of_rows"), [(0, 0), (0, 1), (1, 0), (1, 1), (3, 0.5), (0.5, 3), (0.1, 10)])
def test_at_most_5_percent_of_true_hypotheses_are_rejected(seeds, of_seeds, of_rows):
    """Variance of the mean from seeds and rows, as multiples of the residual's, over 3,000 tables of 60 rows."""
    generator = np.random.default_rng(seeds)
    rows, number = 60, 3000
    a = generator.normal(0, (of_seeds / rows) ** 0.5, (number, seeds, 1))
    b = generator.normal(0, (of_rows / seeds) ** 0.5, (number, 1, rows))
    tables = a + b + generator.normal(0, 1, (number, seeds, rows))
    rejected = np.mean([p is not None and p < 0.05 for p in (mean_of_table(t).p_differs() for t in tables)])
    assert rejected < 0.052 + 3 * (0.05 * 0.95 / number) ** 0.5
    if of_rows == 10:
        assert rejected > 0.035, "not needlessly careful where the rows decide"


def test_the_planned_error_of_a_large_pilot_is_the_true_one():
    pilot = mean_of_table(draw(np.random.default_rng(1), 400, 400, 0.3, 0.5, 2.0))
    error, df = planned_standard_error(pilot, 5, 100)
    assert error == pytest.approx((0.3**2 / 5 + 0.5**2 / 100 + 2.0**2 / 500) ** 0.5, rel=0.05)
    assert 4 <= df < 103


@pytest.mark.parametrize("seeds", [3, 5, 10, 20])
def test_the_detectable_effect_has_its_power_under_the_noncentral_t_distribution(seeds):
    effect, df = detectable_effect(seeds - 1), seeds - 1
    critical = student.ppf(0.975, df)
    assert nct.sf(critical, df, effect) + nct.cdf(-critical, df, effect) == pytest.approx(0.8, abs=1e-4)


@pytest.mark.parametrize(("seeds", "expected"), [(5, 1.682), (10, 0.996), (20, 0.660)])
def test_the_detectable_difference_in_standard_deviations(seeds, expected):
    assert detectable_effect(seeds - 1) / seeds**0.5 == pytest.approx(expected, abs=2e-3)


def test_the_detectable_effect_is_found_in_80_percent_of_simulated_experiments():
    generator, number = np.random.default_rng(5), 20_000
    shift = detectable_effect(4) / 5**0.5
    p = ttest_1samp(generator.normal(shift, 1.0, (number, 5)), 0.0, axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.01)

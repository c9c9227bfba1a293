"""Wilson's interval against scipy and its coverage, the interquartile mean, and the values of rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, trim_mean

from kasatune.metrics import classification_scores, regression_scores
from kasatune.metrics.row_values import ratio_values, row_values
from kasatune.metrics.seeds_by_rows import mean_of_table
from kasatune.metrics.small_sample import detectable_effect, interquartile_mean, proportion_interval, wilson_interval


@pytest.mark.parametrize(("successes", "number"), [(0, 5), (5, 5), (3, 10), (872, 872), (1, 400)])
def test_wilsons_interval_is_scipys(successes, number):
    expected = binomtest(successes, number).proportion_ci(method="wilson")
    assert wilson_interval(successes / number, number) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("share", "number"), [(-0.1, 5), (1.1, 5), (0.5, 0), (float("nan"), 5)])
def test_wilsons_interval_refuses_what_is_no_proportion(share, number):
    with pytest.raises(ValueError, match="share"):
        wilson_interval(share, number)


def test_a_share_of_one_has_an_interval_below_one():
    low, high = proportion_interval(mean_of_table(np.ones((5, 200))))
    assert high == 1.0 and 0.97 < low < 0.99, "as many observations as rows, not seeds times rows"


@pytest.mark.parametrize("share", [0.5, 0.9, 0.985])
def test_the_interval_of_a_share_covers_it(share):
    """Answers of five seeds to the same rows agree mostly; rows and seeds are drawn anew."""
    generator, hits, number = np.random.default_rng(0), 0, 400
    for _ in range(number):
        easy = generator.random(150) < share
        flips = generator.random((5, 150)) < 0.2 * min(share, 1 - share)
        answers = np.where(flips, generator.random((5, 150)) < share, easy)
        low, high = proportion_interval(mean_of_table(answers.astype(float)))
        hits += low <= share <= high
        assert 0 <= low <= high <= 1
    assert hits / number > 0.92


@pytest.mark.parametrize("seed", range(12))
def test_the_interquartile_mean_is_scipys_trimmed_mean(seed):
    values = list(np.random.default_rng(seed).random(1 + seed))
    assert interquartile_mean(values) == pytest.approx(trim_mean(values, 0.25))


def test_the_interquartile_mean_needs_a_value():
    with pytest.raises(ValueError, match="value"):
        interquartile_mean([])


@pytest.mark.parametrize("arguments", [(0,), (4, 0.05, 1.0), (4, 0.8, 0.5), (float("nan"),)])
def test_an_impossible_power_is_refused(arguments):
    with pytest.raises(ValueError, match="needed"):
        detectable_effect(*arguments)


@pytest.mark.parametrize("rows", [40, 1500])
def test_the_mean_of_the_row_values_is_the_score(rows):
    draw = np.random.default_rng(rows)
    labels = draw.integers(0, 3, rows)
    given = np.where(draw.random(rows) < 0.7, labels, draw.integers(0, 3, rows))
    for metric in ("accuracy", "matthews_correlation"):
        expected = classification_scores([metric], given, labels)[metric]
        assert row_values(metric, labels, given).mean() == pytest.approx(expected, abs=1e-12)
    x = draw.normal(size=rows)
    y = x + draw.normal(size=rows)
    values = row_values("pearson", x, y)
    assert values.mean() == pytest.approx(regression_scores(["pearson"], y, x)["pearson"], abs=1e-12)
    assert len(values) == min(rows, 1000)


def test_pseudo_values_have_the_standard_error_of_a_correlation():
    """(1 - r^2) / sqrt(n) for normal data."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=4000)
    y = x + draw.normal(size=4000)
    values = row_values("pearson", x, y)
    r = values.mean()
    assert values.std(ddof=1) / len(values) ** 0.5 == pytest.approx((1 - r * r) / 4000**0.5, rel=0.12)


def test_unknown_scores_have_no_row_values():
    assert row_values("bleu", [0, 1], [0, 1]) is None
    with pytest.raises(ValueError, match="one prediction per label"):
        row_values("accuracy", [0, 1], [0])


def test_ratio_values_have_the_ratio_as_their_mean_and_its_standard_error():
    draw = np.random.default_rng(2)
    counts = draw.integers(5, 60, 300)
    sums = counts * draw.normal(2.0, 0.3, 300)
    values = ratio_values(sums, counts)
    assert values.mean() == pytest.approx(sums.sum() / counts.sum(), rel=1e-12)
    picks = draw.integers(0, 300, (4000, 300))
    resampled = sums[picks].sum(1) / counts[picks].sum(1)
    assert values.std(ddof=1) / 300**0.5 == pytest.approx(resampled.std(), rel=0.08)
    with pytest.raises(ValueError, match="counts"):
        ratio_values([1.0], [0])

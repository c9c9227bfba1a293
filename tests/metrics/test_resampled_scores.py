"""Scores on resampled rows against scores of the rows that were drawn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import matthews_corrcoef

from kasatune.metrics.bootstrap import resampled_scores, seeds_and_rows_interval


def drawn_rows(rows: int, n: int, seed: int) -> list[np.ndarray]:
    """The resamples, as lists of rows."""
    weights = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=n)
    return [np.repeat(np.arange(rows), one) for one in weights]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("metric", ["accuracy", "matthews_correlation"])
def test_resampled_scores_equal_those_of_the_drawn_rows(metric, classes):
    draw = np.random.default_rng(5)
    labels = draw.integers(classes, size=40)
    given = np.where(draw.random((3, 40)) < 0.6, labels, draw.integers(classes, size=(3, 40)))
    table = resampled_scores(metric, labels, given, n=7, seed=2)
    for column, rows in enumerate(drawn_rows(40, 7, 2)):
        for one in range(3):
            right, answered = labels[rows], given[one][rows]
            expected = np.mean(right == answered) if metric == "accuracy" else matthews_corrcoef(right, answered)
            assert table[one, column] == pytest.approx(expected, abs=1e-12)


def test_resampled_correlations_equal_those_of_the_drawn_rows():
    draw = np.random.default_rng(6)
    labels = draw.normal(size=30) + 100
    given = (labels + draw.normal(size=30))[None]
    table = resampled_scores("pearson", labels, given, n=5, seed=3)
    for column, rows in enumerate(drawn_rows(30, 5, 3)):
        assert table[0, column] == pytest.approx(pearsonr(labels[rows], given[0][rows]).statistic, abs=1e-9)


def test_constant_predictions_score_zero():
    assert (resampled_scores("matthews_correlation", [0, 1, 1, 0], [[1, 1, 1, 1]], n=9) == 0).all()
    assert (resampled_scores("pearson", [0.0, 1.0, 2.0], [[3.0, 3.0, 3.0]], n=9) == 0).all()


def test_resamples_are_the_same_however_many_predictions_are_scored_together():
    labels = [0, 1] * 20
    first, second = [0] * 40, [0, 0, 1, 1] * 10
    both = resampled_scores("accuracy", labels, [first, second], n=50)
    assert (resampled_scores("accuracy", labels, [second], n=50)[0] == both[1]).all()


def test_an_unknown_score_gives_none_and_wrong_shapes_are_refused():
    assert resampled_scores("bleu", [0, 1], [[0, 1]]) is None
    with pytest.raises(ValueError, match="one prediction per row"):
        resampled_scores("accuracy", [0, 1], [[0, 1, 1]])


def test_the_interval_over_seeds_and_rows_is_wider_than_over_either():
    draw = np.random.default_rng(0)
    seeds, rows = draw.normal(0, 0.06, size=(5, 1)), draw.normal(0, 0.02, size=(1, 4000))

    def width(table):
        _, low, high = seeds_and_rows_interval(table, 0.0)
        return high - low

    both = width(seeds + rows)
    assert both > 1.1 * width(np.repeat(seeds, 4000, axis=1))
    assert both > 1.1 * width(np.repeat(rows, 5, axis=0))
    assert width(np.repeat(rows, 5, axis=0)) == pytest.approx(2 * 1.96 * 0.02, rel=0.1)

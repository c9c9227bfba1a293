"""Scores of classes and numbers against their formulas, written out with plain numbers."""

import math
import warnings

import numpy as np
import pytest

from kasatune.errors import DivergedError
from kasatune.metrics import UndefinedScoreWarning, classification_scores, regression_scores

LABELS = [1, 1, 1, 0, 0, 0, 0, 1, 0, 1]
GIVEN = [1, 0, 1, 0, 1, 0, 0, 1, 0, 0]
TP, TN, FP, FN = 3, 4, 1, 2
ALL = ("accuracy", "f1", "matthews_correlation")


def pearson(x, y):
    n = len(x)
    mx, my = sum(x) / n, sum(y) / n
    covariance = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return covariance / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def mean_ranks(x):
    return [sum(b < a for b in x) + (sum(b == a for b in x) + 1) / 2 for a in x]


def test_two_labels_against_the_confusion_table():
    scores = classification_scores(ALL, GIVEN, LABELS)
    assert list(scores) == list(ALL)
    assert scores["accuracy"] == pytest.approx((TP + TN) / 10)
    assert scores["f1"] == pytest.approx(2 * TP / (2 * TP + FP + FN))
    product = (TP + FP) * (TP + FN) * (TN + FP) * (TN + FN)
    assert scores["matthews_correlation"] == pytest.approx((TP * TN - FP * FN) / math.sqrt(product))


def test_three_labels_against_their_formulas():
    labels, given = [0, 1, 2, 0, 1, 2, 2, 1], [0, 2, 2, 1, 1, 2, 0, 1]
    scores = classification_scores(ALL, given, labels)
    table = np.zeros((3, 3))
    for right, said in zip(labels, given, strict=True):
        table[right, said] += 1
    f1 = [2 * table[k, k] / (table[k].sum() + table[:, k].sum()) for k in range(3)]
    assert scores["f1"] == pytest.approx(sum(f1) / 3)
    t, p, c, s = table.sum(1), table.sum(0), np.trace(table), table.sum()
    expected = (c * s - t @ p) / math.sqrt((s**2 - p @ p) * (s**2 - t @ t))
    assert scores["matthews_correlation"] == pytest.approx(expected)


def test_the_largest_logit_is_the_prediction():
    logits = np.eye(2)[GIVEN] * 5 - 1
    assert classification_scores(ALL, logits, LABELS) == classification_scores(ALL, GIVEN, LABELS)


def test_the_number_of_classes_decides_between_binary_and_macro_f1():
    given, labels = [0, 1, 1, 0], [0, 1, 0, 0]
    assert classification_scores(["f1"], given, labels)["f1"] == pytest.approx(2 / 3)
    three = classification_scores(["f1"], given, labels, classes=3)["f1"]
    assert three == pytest.approx((0.8 + 2 / 3 + 0) / 3)
    assert classification_scores(["f1"], np.eye(3)[given], labels)["f1"] == pytest.approx(three)


def test_constant_predictions_have_zero_correlation_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = classification_scores(ALL, [0] * 10, LABELS)
        assert scores == {"accuracy": 0.5, "f1": 0.0, "matthews_correlation": 0.0}
        assert classification_scores(ALL, [1, 1], [1, 1]) == {"accuracy": 1.0, "f1": 1.0, "matthews_correlation": 0.0}


def test_correlations_against_their_formulas():
    x, y = [0.1, 2.5, 2.5, 4.0, -1.0, 3.3], [0.0, 2.0, 3.0, 5.0, 1.0, 3.0]
    scores = regression_scores(["spearman", "pearson"], x, y)
    assert list(scores) == ["spearman", "pearson"]
    assert scores["pearson"] == pytest.approx(pearson(x, y))
    assert scores["spearman"] == pytest.approx(pearson(mean_ranks(x), mean_ranks(y)))
    assert regression_scores(["pearson"], np.array(x)[:, None], y)["pearson"] == pytest.approx(pearson(x, y))


@pytest.mark.parametrize(
    ("given", "labels", "which"),
    [([2.0, 2.0, 2.0], [1, 2, 3], "predictions"), ([1.0, 2.0, 3.0], [2, 2, 2], "labels"), ([1.0], [1.0], "constant")],
)
def test_undefined_correlations_are_zero_with_a_warning(given, labels, which):
    with pytest.warns(UndefinedScoreWarning, match=which):
        assert regression_scores(["pearson"], given, labels) == {"pearson": 0.0}


def test_nearly_constant_predictions_keep_their_correlation():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = [1 + 1e-13, 1 + 2e-13, 1 + 3e-13, 1 + 4e-13]
        assert regression_scores(["spearman"], given, [1, 2, 3, 4])["spearman"] == pytest.approx(1)
        assert 0.9 < regression_scores(["pearson"], given, [1, 2, 3, 4])["pearson"] <= 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinite_numbers_are_refused(bad):
    with pytest.raises(DivergedError, match="1 of 2 predictions"):
        regression_scores(["pearson"], [bad, 1.0], [0, 1])
    with pytest.raises(DivergedError, match="1 of 4 logits"):
        classification_scores(["accuracy"], [[bad, 1.0], [0.0, 1.0]], [0, 1])


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="unknown score: bleu; choose from accuracy, f1"):
        classification_scores(["accuracy", "bleu"], [0], [0])
    with pytest.raises(ValueError, match="one prediction per label"):
        classification_scores(["accuracy"], [0, 1], [0])
    with pytest.raises(ValueError, match="no rows"):
        regression_scores(["pearson"], [], [])

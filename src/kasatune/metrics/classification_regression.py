"""Scores of predicted classes and numbers, as GLUE defines them: fractions, not percentages.

scikit-learn and scipy compute them; they are imported on first use.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kasatune.errors import DivergedError
from kasatune.wording import counted

Array = npt.NDArray[Any]
Numbers = Sequence[int] | Sequence[float] | Array


class UndefinedScoreWarning(UserWarning):
    """A score is undefined on these rows, and 0 is reported instead."""


def classification_scores(
    names: Sequence[str], predictions: Numbers | Sequence[Sequence[float]], labels: Numbers, classes: int | None = None
) -> dict[str, float]:
    """Scores of predicted classes.

    - `accuracy`: correct predictions / rows.
    - `f1`: `2 P R / (P + R)` of class 1 for two classes (GLUE), the unweighted mean over all classes for more; 0 for a
      class that is never predicted correctly.
    - `matthews_correlation`: the phi coefficient (Gorodkin's R_K for more than two classes), -1 to 1; 0 if predictions
      or labels are constant, as in scikit-learn and GLUE.

    Args:
        names: names of the scores.
        predictions: class indices (rows,), or logits (rows, classes), whose argmax is taken.
        labels: the right class indices (rows,).
        classes: number of classes; None for the width of the logits, or else the largest index + 1.

    Raises:
        ValueError: a name is unknown, there are no rows, or the lengths differ.
        DivergedError: a logit is NaN or infinite.
    """
    predicted, expected = np.asarray(predictions), np.asarray(labels)
    if predicted.ndim == 2:
        _require_finite(predicted, "logits")
        classes = classes or predicted.shape[1]
        predicted = predicted.argmax(axis=1)
    _require_pairs(predicted, expected)
    number = classes or int(max(predicted.max(), expected.max())) + 1
    return _scores(names, _CLASSIFICATION, predicted, expected, number)


def regression_scores(names: Sequence[str], predictions: Numbers, labels: Numbers) -> dict[str, float]:
    """Scores of predicted numbers.

    - `pearson`: `cov(x, y) / (std(x) std(y))`.
    - `spearman`: Pearson's correlation of the ranks; equal numbers share their mean rank.

    If predictions or labels are constant, or there is a single row, scipy (and GLUE's scorer) return NaN. Here the
    score is then 0.0 with an `UndefinedScoreWarning`: JSON has no NaN, and a NaN compares as neither better nor worse.

    Args:
        names: names of the scores.
        predictions: numbers, (rows,) or (rows, 1).
        labels: the right numbers, (rows,).

    Raises:
        ValueError: a name is unknown, there are no rows, or the lengths differ.
        DivergedError: a prediction is NaN or infinite.
    """
    predicted, expected = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if predicted.ndim == 2 and predicted.shape[1] == 1:
        predicted = predicted[:, 0]
    _require_finite(predicted, "predictions")
    _require_pairs(predicted, expected)
    return _scores(names, _REGRESSION, predicted, expected)


def _scores(names: Sequence[str], known: dict[str, Callable[..., float]], *rows: Any) -> dict[str, float]:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown score: {', '.join(unknown)}; choose from {', '.join(known)}")
    return {name: known[name](*rows) for name in names}


def _require_finite(values: Array, what: str) -> None:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise DivergedError(f"{bad} of {values.size} {what} are NaN or infinite; a lower learning rate may help")


def _require_pairs(predictions: Array, labels: Array) -> None:
    if predictions.shape != labels.shape or predictions.ndim != 1:
        raise ValueError(
            f"one prediction per label is needed; predictions are {predictions.shape}, labels {labels.shape}"
        )
    if not len(labels):
        raise ValueError("there are no rows to score; give at least one")


def _accuracy(predictions: Array, labels: Array, classes: int) -> float:
    return float(np.mean(predictions == labels))


def _f1(predictions: Array, labels: Array, classes: int) -> float:
    from sklearn.metrics import f1_score

    options: dict[str, Any] = {"average": "binary"} if classes <= 2 else {"average": "macro", "labels": range(classes)}
    return float(f1_score(labels, predictions, zero_division=0, **options))  # pyright: ignore[reportArgumentType]


def _matthews_correlation(predictions: Array, labels: Array, classes: int) -> float:
    from sklearn.metrics import matthews_corrcoef

    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0  # the value of scikit-learn, without its warning about a single class
    return float(matthews_corrcoef(labels, predictions))


def _pearson(predictions: Array, labels: Array) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, "pearson", predictions, labels)


def _spearman(predictions: Array, labels: Array) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, "spearman", predictions, labels)


def _correlation(correlate: Callable[..., Any], name: str, predictions: Array, labels: Array) -> float:
    if len(labels) > 1 and np.ptp(predictions) > 0 and np.ptp(labels) > 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # about nearly constant input; the value is valid
            value = float(correlate(predictions, labels).statistic)
        if np.isfinite(value):
            return value
    constant = "predictions" if np.ptp(predictions) <= np.ptp(labels) else "labels"
    reason = f"the {constant} are constant over {counted(len(labels), 'row')}"
    warnings.warn(f"{name} is undefined, and 0 is reported: {reason}", UndefinedScoreWarning, stacklevel=5)
    return 0.0


_CLASSIFICATION: dict[str, Callable[..., float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews_correlation,
}
_REGRESSION: dict[str, Callable[..., float]] = {"pearson": _pearson, "spearman": _spearman}

"""Scores of labels and numbers under the field's names, as GLUE defines them: fractions, not per cent.

scikit-learn and scipy compute them. They are imported when the first score is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kasatune.errors import DivergedError

Numbers = Sequence[int] | Sequence[float] | np.ndarray


class UndefinedScoreWarning(UserWarning):
    """A score has no value on these rows, and 0 is reported in its place."""


def classification_scores(
    names: Sequence[str], predictions: Numbers | Sequence[Sequence[float]], labels: Numbers, classes: int | None = None
) -> dict[str, float]:
    """Scores of predicted labels.

    - `accuracy`: right answers / rows.
    - `f1`: `2 P R / (P + R)` of label 1 where there are two labels (GLUE), the unweighted mean over all labels where
      there are more; 0 for a label that is never right.
    - `matthews_correlation`: the phi coefficient (for more labels Gorodkin's R_K), -1 to 1; 0 where predictions or
      labels are constant, as scikit-learn and GLUE have it.

    Args:
        names: which scores.
        predictions: label numbers (rows,), or logits (rows, labels), of which the largest counts.
        labels: the right label numbers (rows,).
        classes: how many labels the task has; where None, the width of the logits, or else the highest number seen + 1.

    Raises:
        ValueError: a name is unknown, there are no rows, or the lengths differ.
        DivergedError: a logit is not a finite number.
    """
    given, right = np.asarray(predictions), np.asarray(labels)
    if given.ndim == 2:
        _require_finite(given, "logits")
        classes = classes or given.shape[1]
        given = given.argmax(axis=1)
    _require_pairs(given, right)
    number = classes or int(max(given.max(), right.max())) + 1
    return _scores(names, _CLASSIFICATION, given, right, number)


def regression_scores(names: Sequence[str], predictions: Numbers, labels: Numbers) -> dict[str, float]:
    """Scores of predicted numbers.

    - `pearson`: `cov(x, y) / (std(x) std(y))`.
    - `spearman`: Pearson's correlation of the ranks, equal numbers sharing their mean rank.

    Where predictions or labels are constant, or there is one row only, scipy (and GLUE's scorer) give NaN. Here that
    is 0.0 with an `UndefinedScoreWarning`: NaN is no JSON, and it would win or lose every comparison by accident.

    Args:
        names: which scores.
        predictions: numbers, (rows,) or (rows, 1).
        labels: the right numbers, (rows,).

    Raises:
        ValueError: a name is unknown, there are no rows, or the lengths differ.
        DivergedError: a prediction is not a finite number.
    """
    given, right = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    _require_finite(given, "predictions")
    _require_pairs(given, right)
    return _scores(names, _REGRESSION, given, right)


def _scores(names: Sequence[str], known: dict[str, Callable[..., float]], *rows: Any) -> dict[str, float]:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no such score: {', '.join(unknown)}; there are {', '.join(known)}")
    return {name: known[name](*rows) for name in names}


def _require_finite(values: np.ndarray, what: str) -> None:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise DivergedError(f"{bad} of {values.size} {what} are NaN or infinite; a lower learning rate may help")


def _require_pairs(predictions: np.ndarray, labels: np.ndarray) -> None:
    if predictions.shape != labels.shape or predictions.ndim != 1:
        raise ValueError(f"one prediction a label is needed: {predictions.shape} against {labels.shape}")
    if not len(labels):
        raise ValueError("there are no rows to score")


def _accuracy(predictions: np.ndarray, labels: np.ndarray, classes: int) -> float:
    return float(np.mean(predictions == labels))


def _f1(predictions: np.ndarray, labels: np.ndarray, classes: int) -> float:
    from sklearn.metrics import f1_score

    which: dict[str, Any] = {"average": "binary"} if classes <= 2 else {"average": "macro", "labels": range(classes)}
    return float(f1_score(labels, predictions, zero_division=0, **which))  # pyright: ignore[reportArgumentType]


def _matthews_correlation(predictions: np.ndarray, labels: np.ndarray, classes: int) -> float:
    from sklearn.metrics import matthews_corrcoef

    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0  # what scikit-learn gives too, without its warning about a single label
    return float(matthews_corrcoef(labels, predictions))


def _pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, "pearson", predictions, labels)


def _spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, "spearman", predictions, labels)


def _correlation(correlate: Callable[..., Any], name: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    if len(labels) > 1 and np.ptp(predictions) > 0 and np.ptp(labels) > 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # nearly constant input: the value stands
            value = float(correlate(predictions, labels).statistic)
        if np.isfinite(value):
            return value
    which = "predictions" if np.ptp(predictions) <= np.ptp(labels) else "labels"
    why = f"the {which} are constant over {len(labels)} rows"
    warnings.warn(f"{name} is undefined, and 0 is reported: {why}", UndefinedScoreWarning, stacklevel=5)
    return 0.0


_CLASSIFICATION: dict[str, Callable[..., float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews_correlation,
}
_REGRESSION: dict[str, Callable[..., float]] = {"pearson": _pearson, "spearman": _spearman}

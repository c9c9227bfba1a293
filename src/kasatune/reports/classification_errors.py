"""Confusion matrix, scores per class, worst rows, and the score of constant answers, from the predictions of a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kasatune.reports.run_record import RunRecord

MOST_CLASSES = 20
"""A larger confusion matrix is not shown; the scores per class are."""


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class.

    Attributes:
        name: the label.
        rows: rows with this label.
        predicted: rows for which it was predicted.
        precision: share of those that have it; None if there are none.
        recall: share of its rows for which it was predicted; None if there are none.
        f1: harmonic mean of both; 0 if no row with the label was found.
    """

    name: str
    rows: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix.

    Attributes:
        names: the labels.
        counts: rows by label (first index) and prediction.
        shares: the same as shares of the rows with the label.
    """

    names: list[str]
    counts: list[list[int]]
    shares: list[list[float]]


@dataclass(frozen=True)
class WorstRow:
    """A row that was predicted wrong.

    Attributes:
        number: from 1, in the order of the split.
        texts: its text or texts, cut.
        label: the right answer.
        predicted: the prediction.
        probability: of the right label; None for numbers.
    """

    number: int
    texts: list[str]
    label: str
    predicted: str
    probability: float | None


def class_scores(run: RunRecord) -> list[ClassScores]:
    """The scores of every class; none if the run is no classification."""
    pairs = _pairs(run)
    if pairs is None:
        return []
    names = _names(run)
    rows, predicted, right = Counter(label for label, _ in pairs), Counter(guess for _, guess in pairs), Counter()
    for label, guess in pairs:
        right[label] += label == guess
    return [
        ClassScores(
            name=name,
            rows=rows[number],
            predicted=predicted[number],
            precision=right[number] / predicted[number] if predicted[number] else None,
            recall=right[number] / rows[number] if rows[number] else None,
            f1=2 * right[number] / max(1, rows[number] + predicted[number]),
        )
        for number, name in enumerate(names)
    ]


def confusion(run: RunRecord) -> Confusion | None:
    """The confusion matrix; None if the run is no classification or has more than `MOST_CLASSES` classes."""
    pairs, names = _pairs(run), _names(run)
    if pairs is None or len(names) > MOST_CLASSES:
        return None
    table = Counter(pairs)
    counts = [[table[label, guess] for guess in range(len(names))] for label in range(len(names))]
    return Confusion(names, counts, [[count / max(1, sum(row)) for count in row] for row in counts])


def worst_rows(run: RunRecord) -> list[WorstRow]:
    """The rows that were predicted wrong with the most confidence, or with the largest error."""
    names, content = _names(run), run.predictions
    labels, guesses, scores = (content.get(key) or [] for key in ("labels", "predictions", "scores"))
    rows = []
    for entry in content.get("worst") or []:
        number = entry["row"]
        label, guess = labels[number], guesses[number]
        if names:
            rows.append(WorstRow(number + 1, entry["texts"], names[label], names[guess], scores[number][label]))
        else:
            rows.append(WorstRow(number + 1, entry["texts"], f"{label:.4g}", f"{guess:.4g}", None))
    return rows


def constant_answer(run: RunRecord) -> tuple[str, float] | None:
    """The best constant answer and its score in the main score of the run; None where that is not a fixed number.

    For accuracy it is the most frequent label of the scored rows, for the mean squared error their mean.
    """
    labels: Sequence[Any] = run.predictions.get("labels") or []
    if not labels or run.task_kind == "generation":
        return None
    if run.primary == "accuracy" and _names(run):
        label, count = Counter(labels).most_common(1)[0]
        return f"always answering {_names(run)[label]!r}", count / len(labels)
    if run.primary == "mse":
        mean = math.fsum(labels) / len(labels)
        return "always answering the mean", math.fsum((label - mean) ** 2 for label in labels) / len(labels)
    return None


def _pairs(run: RunRecord) -> list[tuple[int, int]] | None:
    """(label, prediction) of every row; None if the run is no classification."""
    if run.correct is None or not _names(run):
        return None
    return list(zip(run.predictions["labels"], run.predictions["predictions"], strict=True))


def _names(run: RunRecord) -> list[str]:
    return list(run.metrics.get("label_names") or [])

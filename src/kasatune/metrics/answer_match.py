"""Match short answers: exact match and token F1 as in SQuAD's evaluation script, and answers inside a text."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and repeated blanks, as in SQuAD's evaluate-v1.1.py."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the normalized prediction equals one of the normalized answers, otherwise 0."""
    predicted = normalize_answer(prediction)
    return float(any(predicted == normalize_answer(answer) for answer in answers))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """The largest F1 = 2 P R / (P + R) of normalized words over the answers.

    A word counts as often as it occurs in both. As in SQuAD 1.1, a prediction or an answer without words after
    normalization scores 0.
    """
    return max((_f1(prediction, answer) for answer in answers), default=0.0)


def contains_answer(text: str, answer: str) -> bool:
    """Whether the normalized words of `answer` occur side by side in those of `text`; never for an empty answer."""
    wanted = normalize_answer(answer)
    return bool(wanted) and f" {wanted} " in f" {normalize_answer(text)} "


def _f1(prediction: str, answer: str) -> float:
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(answer).split()
    shared = sum((Counter(predicted) & Counter(expected)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(expected)
    return 2 * precision * recall / (precision + recall)

"""Leakage checks: no training row repeats an evaluation question or much of the text of an evaluation document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kasatune.metrics.answer_match import normalize_answer

NGRAM = 13
LARGEST_SHARE = 0.2
"""Share of the 13-grams of a text that may occur in evaluation documents; documentation shares standing phrases."""

REPEATED_QUESTION = "repeats an evaluation question"
REPEATED_DOCUMENT = "repeats the text of an evaluation document"


class LeakageCheck:
    """Compares texts with the evaluation questions and their documents, after SQuAD's normalization.

    Args:
        questions: the evaluation questions.
        documents: the texts of the documents that answer them.
    """

    def __init__(self, questions: Iterable[str], documents: Iterable[str]) -> None:
        self._questions = {normalize_answer(question) for question in questions}
        self._ngrams = {ngram for text in documents for ngram in _ngrams(text)}

    def fault(self, text: str, question: str | None = None) -> str | None:
        """Why a row may not be trained on; None if it may.

        Args:
            text: the passage or message of the row.
            question: its question.
        """
        if question is not None and normalize_answer(question) in self._questions:
            return REPEATED_QUESTION
        ngrams = list(_ngrams(text))
        shared = sum(ngram in self._ngrams for ngram in ngrams)
        return REPEATED_DOCUMENT if ngrams and shared / len(ngrams) > LARGEST_SHARE else None


def _ngrams(text: str) -> Iterator[tuple[str, ...]]:
    words = normalize_answer(text).split()
    return (tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1))

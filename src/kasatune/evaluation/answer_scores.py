"""Score short answers to questions: exact match and F1 as in SQuAD, and the recall of retrieval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kasatune.data.tasks.rag_qa import passages_of
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.evaluation.text_scores import GeneratedText, LogLikelihoods, TextScores
from kasatune.metrics.answer_match import contains_answer, exact_match, token_f1

ANSWER_SCORES: Mapping[str, Callable[[str, Sequence[str]], float]] = {"exact_match": exact_match, "f1": token_f1}
"""Scores of a written answer compared with the right ones, by name."""


def score_short_answers(info: TaskInfo, generated: GeneratedText, log_likelihoods: LogLikelihoods) -> TextScores:
    """Means over the questions.

    - exact_match: the written answer equals a right one after SQuAD's normalization.
    - f1: the largest F1 of normalized words over the right answers.
    - retrieval_recall: the passages in the prompt contain a right answer; 0 for prompts without passages.

    Returns:
        The metrics and, for each prompt, {"exact_match", "f1", "retrieved"}.
    """
    details = [
        {
            **{name: score(text, answers) for name, score in ANSWER_SCORES.items()},
            "retrieved": any(contains_answer(passages_of(prompt), answer) for answer in answers),
        }
        for prompt, text, answers in zip(generated.prompts, generated.texts, generated.references, strict=True)
    ]
    columns = {"exact_match": "exact_match", "f1": "f1", "retrieval_recall": "retrieved"}
    metrics = {name: sum(row[key] for row in details) / len(details) for name, key in columns.items()}
    return TextScores(metrics, details)

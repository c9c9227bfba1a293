"""Prompts of SimRAG: extract an answer, ask a question, choose an option, check a claim; the paper gives none."""

from __future__ import annotations

from collections.abc import Sequence

_PASSAGE = "Passage: {passage}\n\n{request}"
_EXTRACT = "Copy a short answer from the passage that a question could ask for."
_ASK = "Write a question about the passage. Its answer must be: {answer}"
_CLAIM = "Write a true statement about the passage. It must contain the words: {answer}"
_CHOICE = "{question} Choose one: {options}"
_CHECK = "Is this claim supported by the passages, yes or no? {claim}"

SUPPORTED, REFUTED = "yes", "no"


def extract_prompt(passage: str) -> str:
    """The request for one answer from a passage."""
    return _PASSAGE.format(passage=passage, request=_EXTRACT)


def question_prompt(document: str, passage: str, answer: str) -> str:
    """The request for a question about a passage of the named document that has a given answer."""
    return _PASSAGE.format(passage=f"{document}: {passage}", request=_ASK.format(answer=answer))


def claim_prompt(document: str, passage: str, answer: str) -> str:
    """The request for a true statement about a passage of the named document that contains a given answer."""
    return _PASSAGE.format(passage=f"{document}: {passage}", request=_CLAIM.format(answer=answer))


def choice_question(question: str, options: Sequence[str]) -> str:
    """A question with its options."""
    return _CHOICE.format(question=question, options="; ".join(options))


def claim_question(claim: str) -> str:
    """The question whether a claim is supported."""
    return _CHECK.format(claim=claim)

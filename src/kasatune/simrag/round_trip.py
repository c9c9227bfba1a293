"""The round-trip filter: a generated question is kept if the passages that it retrieves contain its answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kasatune.data.retrieval.chunks import Chunk
from kasatune.data.retrieval.index import PassageIndex
from kasatune.metrics.answer_match import contains_answer, normalize_answer
from kasatune.simrag.leakage import LeakageCheck
from kasatune.simrag.self_questions import Candidate

NOT_RETRIEVED = "the retrieved passages do not contain the answer"
_LEAST_WORDS = 3


@dataclass(frozen=True)
class Judged:
    """A candidate with the decision of the filter.

    Attributes:
        candidate: the candidate.
        reason: why it is thrown away; None if it is kept.
        passages: the retrieved chunks, best first; none if the question was not asked.
    """

    candidate: Candidate
    reason: str | None
    passages: tuple[Chunk, ...] = ()


def filter_candidates(
    candidates: Sequence[Candidate], index: PassageIndex, k: int, check: LeakageCheck
) -> list[Judged]:
    """Judge each candidate, in order.

    A question is thrown away without being asked if it has fewer than 3 words, contains its own answer (a claim must
    contain it), repeats an earlier one, or leaks from the evaluation.
    """
    judged: list[Judged] = []
    earlier: set[str] = set()
    for candidate in candidates:
        reason = _form_fault(candidate, earlier) or check.fault(candidate.chunk.text, candidate.question)
        earlier.add(normalize_answer(candidate.question))
        if reason is not None:
            judged.append(Judged(candidate, reason))
            continue
        passages = tuple(item.chunk for item in index.search(candidate.question, k))
        reason = None if _holds(passages, candidate.answer) else NOT_RETRIEVED
        judged.append(Judged(candidate, reason, passages))
    return judged


def retrieval_rate(judged: Sequence[Judged], index: PassageIndex, k: int) -> float:
    """Share of the questions that were asked whose answer is in the `k` passages that `index` retrieves; 0 for none."""
    asked = [item.candidate for item in judged if item.reason in (None, NOT_RETRIEVED)]
    held = sum(_holds([hit.chunk for hit in index.search(item.question, k)], item.answer) for item in asked)
    return held / len(asked) if asked else 0.0


def shuffled_chunks(chunks: Sequence[Chunk], seed: int) -> list[Chunk]:
    """Chunks of the same sizes and the same words, with the words of all chunks in a random order.

    What the filter keeps of a corpus like this, it keeps by chance: answers that are frequent words.
    """
    words = [word for chunk in chunks for word in chunk.text.split()]
    random.Random(seed).shuffle(words)
    shuffled, start = [], 0
    for number, chunk in enumerate(chunks):
        size = len(chunk.text.split())
        text = " ".join(words[start : start + size])
        shuffled.append(replace(chunk, document=f"shuffled {number}", text=text))
        start += size
    return shuffled


def _form_fault(candidate: Candidate, earlier: set[str]) -> str | None:
    question = normalize_answer(candidate.question)
    has_answer = contains_answer(candidate.question, candidate.answer)
    if len(question.split()) < _LEAST_WORDS:
        return f"the question has fewer than {_LEAST_WORDS} words"
    if candidate.kind == "claim" and not has_answer:
        return "the claim does not contain the answer"
    if candidate.kind != "claim" and has_answer:
        return "the question contains the answer"
    return "the question repeats an earlier one" if question in earlier else None


def _holds(passages: Sequence[Chunk], answer: str) -> bool:
    return any(contains_answer(passage.text, answer) for passage in passages)

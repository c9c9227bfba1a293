"""Answers and questions that the stage-I model writes for unlabelled documents, each stored when it is written."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kasatune.data.chat_template import prompt_of_chat
from kasatune.data.retrieval.chunks import Chunk
from kasatune.evaluation.generate import generate
from kasatune.evaluation.task_model import TaskModel
from kasatune.io.progress import progress_counter
from kasatune.llm_client.cache import AnswerCache
from kasatune.metrics.answer_match import contains_answer, normalize_answer
from kasatune.recipes.schema import GenerationSection
from kasatune.simrag.evaluation_questions import shuffled_order
from kasatune.simrag.prompts import claim_prompt, extract_prompt, question_prompt
from kasatune.simrag.recipe import SimragRecipe

ANSWER_TOKENS, QUESTION_TOKENS = 24, 48
LONGEST_ANSWER = 12
"""Words of an answer; a longer one is not a short span."""

_LEAST_WORDS = 8  # of a part of a chunk from which an answer is extracted


class Request(NamedTuple):
    """A text to be written, and what is recorded with it.

    Attributes:
        key: identifies it in the file of generated texts.
        prompt: the message to the model.
        record: its provenance.
    """

    key: str
    prompt: str
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A generated pair of question and answer.

    Attributes:
        key: identifies the question in the file of generated texts.
        chunk: the chunk that it was made from.
        kind: "short", "choice" or "claim".
        question: the question, or the claim.
        answer: the extracted answer.
    """

    key: str
    chunk: Chunk
    kind: str
    question: str
    answer: str


class Writer:
    """Writes texts with a model in fixed batches; a text that was stored before is not written again.

    A batch of which a text is missing is written again completely, so that a resumed run writes the same texts.

    Args:
        task_model: the model.
        texts: the file of generated texts.
        model_sha256: identifies the weights of the model in each record.
    """

    def __init__(self, task_model: TaskModel, texts: AnswerCache, model_sha256: str) -> None:
        self._task_model, self._texts, self._model = task_model, texts, model_sha256

    def write(self, step: str, requests: Sequence[Request], max_new_tokens: int) -> dict[str, str]:
        """The text of each request by its key."""
        task_model, recipe = self._task_model, self._task_model.recipe
        decoding = GenerationSection.model_validate({"max_new_tokens": max_new_tokens})
        size = recipe.training.eval_batch_size
        written: dict[str, str] = {}
        with progress_counter("writing", len(requests)) as advance:
            for start in range(0, len(requests), size):
                batch = requests[start : start + size]
                stored = [self._stored(request) for request in batch]
                if any(text is None for text in stored):
                    prompts = [prompt_of_chat(task_model.base.tokenizer, [("user", item.prompt)]) for item in batch]
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # texts cut at the limit are judged by the filter
                        stored = generate(
                            task_model.model,
                            task_model.base.tokenizer,
                            prompts,
                            decoding,
                            size,
                            max_length=recipe.task.max_length,
                            precision=recipe.training.precision,
                            end_of_turn=task_model.end_of_turn,
                        )
                    for request, text in zip(batch, stored, strict=True):
                        self._texts.add(request.key, self._record(step, request, max_new_tokens, text))
                for request, text in zip(batch, stored, strict=True):
                    written[request.key] = str(text)
                    advance()
        return written

    def _stored(self, request: Request) -> str | None:
        entry = self._texts.get(request.key)
        same = entry is not None and entry["prompt_sha256"] == _sha256(request.prompt) and entry["model"] == self._model
        return str(entry["text"]) if entry is not None and same else None

    def _record(self, step: str, request: Request, max_new_tokens: int, text: str) -> dict[str, Any]:
        return {
            "step": step,
            **request.record,
            "prompt_sha256": _sha256(request.prompt),
            "model": self._model,
            "decoding": {"max_new_tokens": max_new_tokens, "num_beams": 1, "do_sample": False},
            "text": text,
        }


def chosen_chunks(recipe: SimragRecipe, chunks: Sequence[Chunk], held_out: set[str]) -> list[Chunk]:
    """The chunks to generate from: one of each document in a random order, then a second one of each, and so on."""
    seed = recipe.training.seed
    by_document: dict[str, list[Chunk]] = {}
    for chunk in sorted(chunks, key=lambda chunk: shuffled_order(chunk.name, seed)):
        if chunk.document not in held_out:
            by_document.setdefault(chunk.document, []).append(chunk)
    ranked = [
        (rank, shuffled_order(name, seed), chunk) for name, own in by_document.items() for rank, chunk in enumerate(own)
    ]
    ordered = [chunk for *_, chunk in sorted(ranked, key=lambda item: item[:2])]
    return ordered[: recipe.stage_two.chunks]


def write_candidates(
    recipe: SimragRecipe, chunks: Sequence[Chunk], writer: Writer
) -> tuple[list[Candidate], dict[str, int]]:
    """Extract an answer from each part of each chunk and write a question for it; the kinds are taken in turn.

    Returns:
        The candidates, and how many answers were left out, by reason.
    """
    parts = [part for chunk in chunks for part in _parts(chunk, recipe.stage_two.answers_per_chunk)]
    requests = [
        Request(
            f"answer {key}", extract_prompt(text), {"document": chunk.document, "chunk": chunk.name, "passage": text}
        )
        for key, chunk, text in parts
    ]
    answers = writer.write("extract-answer", requests, ANSWER_TOKENS)
    left_out: dict[str, int] = {}
    asked: list[tuple[str, Chunk, str, str]] = []
    known: set[tuple[str, str]] = set()
    kinds = recipe.stage_two.kinds
    for (key, chunk, text), request in zip(parts, requests, strict=True):
        answer = " ".join(answers[request.key].split())
        reason = _answer_fault(answer, text, (chunk.document, normalize_answer(answer)) in known)
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        known.add((chunk.document, normalize_answer(answer)))
        asked.append((key, chunk, kinds[len(asked) % len(kinds)], answer))
    requests = [
        Request(
            f"{kind} {key}",
            (claim_prompt if kind == "claim" else question_prompt)(chunk.document, chunk.text, answer),
            {"document": chunk.document, "chunk": chunk.name, "kind": kind, "answer": answer},
        )
        for key, chunk, kind, answer in asked
    ]
    questions = writer.write("ask-question", requests, QUESTION_TOKENS)
    candidates = [
        Candidate(request.key, chunk, kind, " ".join(questions[request.key].split()), answer)
        for (_, chunk, kind, answer), request in zip(asked, requests, strict=True)
    ]
    return candidates, left_out


def _answer_fault(answer: str, passage: str, repeated: bool) -> str | None:
    if not normalize_answer(answer):
        return "no answer was written"
    if len(answer.split()) > LONGEST_ANSWER:
        return f"the answer has over {LONGEST_ANSWER} words"
    if not contains_answer(passage, answer):
        return "the answer is not in its passage"
    return "the answer repeats one of its document" if repeated else None


def _parts(chunk: Chunk, number: int) -> Iterator[tuple[str, Chunk, str]]:
    """(key, chunk, text) of up to `number` parts of a chunk of equal numbers of words, at least 8 each."""
    places = [(match.start(), match.end()) for match in re.finditer(r"\S+", chunk.text)]
    count = max(1, min(number, len(places) // _LEAST_WORDS))
    for part in range(count):
        own = places[len(places) * part // count : len(places) * (part + 1) // count]
        yield f"{chunk.name}.{part}", chunk, chunk.text[own[0][0] : own[-1][1]]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

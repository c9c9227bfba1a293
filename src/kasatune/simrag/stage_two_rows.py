"""The rows of stage II: those of stage I and the kept pairs, with retrieved passages in the prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from kasatune.data.retrieval.index import PassageIndex
from kasatune.data.tasks.rag_qa import answer_prompt
from kasatune.data.tasks.task_info import RetrievedPassage
from kasatune.metrics.answer_match import contains_answer, normalize_answer
from kasatune.simrag.prompts import REFUTED, SUPPORTED, choice_question, claim_question
from kasatune.simrag.recipe import SimragRecipe
from kasatune.simrag.round_trip import Judged

OPTIONS = 4
NO_PASSAGE = "only evaluation documents contain the answer"

Row = dict[str, Any]


def pair_rows(
    recipe: SimragRecipe, judged: Sequence[Judged], index: PassageIndex, held_out: set[str]
) -> tuple[list[Row], list[Judged]]:
    """The training rows of the kept pairs, and all candidates again: some of them have only held-out passages.

    The passages in a prompt are those that the question retrieves among the documents that are not held out. Every
    other claim is made false by replacing its answer with one of another document; the wrong options of a
    multiple-choice question are such answers too.
    """
    seed = recipe.training.seed
    answers = sorted({(item.candidate.chunk.document, item.candidate.answer) for item in judged if item.reason is None})
    rows: list[Row] = []
    final: list[Judged] = []
    claims = 0
    for item in judged:
        candidate = item.candidate
        if item.reason is not None:
            final.append(item)
            continue
        found = index.search(candidate.question, recipe.corpus.passages, allowed=lambda c: c.document not in held_out)
        if not any(contains_answer(passage.chunk.text, candidate.answer) for passage in found):
            final.append(Judged(candidate, NO_PASSAGE, item.passages))
            continue
        final.append(item)
        if recipe.stage_two.max_pairs is not None and len(rows) >= recipe.stage_two.max_pairs:
            continue
        draw = random.Random(f"{seed} {candidate.key}")
        others = _others(answers, candidate.chunk.document, candidate.answer)
        question, completion = candidate.question, candidate.answer
        if candidate.kind == "choice":
            options = [candidate.answer, *draw.sample(others, min(OPTIONS - 1, len(others)))]
            draw.shuffle(options)
            question = choice_question(question, options)
        elif candidate.kind == "claim":
            is_false = claims % 2 == 1 and bool(others) and candidate.answer in question
            claims += 1
            claim = question.replace(candidate.answer, draw.choice(others)) if is_false else question
            question, completion = claim_question(claim), REFUTED if is_false else SUPPORTED
        passages = [RetrievedPassage(hit.chunk.document, hit.chunk.text, hit.score) for hit in found]
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": answer_prompt(question, passages)},
                    {"role": "assistant", "content": completion},
                ],
                "kind": f"generated-{candidate.kind}",
                "source": candidate.key,
                "document": candidate.chunk.document,
                "chunk": candidate.chunk.name,
                "passages": [hit.chunk.name for hit in found],
            }
        )
    return rows, final


def stage_two_rows(recipe: SimragRecipe, stage_one: Sequence[Row], pairs: Sequence[Row]) -> list[Row]:
    """All rows of stage II, in an order drawn by training.seed."""
    rows = [*stage_one, *pairs]
    random.Random(recipe.training.seed + 1).shuffle(rows)
    return rows


def _others(answers: Sequence[tuple[str, str]], document: str, answer: str) -> list[str]:
    """The answers of other documents that differ from `answer`."""
    own = normalize_answer(answer)
    return list(dict.fromkeys(text for name, text in answers if name != document and normalize_answer(text) != own))

"""The rows of stage I: general instructions, context questions, answer extraction and question writing."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from kasatune.data.readers.conversations import read_chats
from kasatune.data.readers.faults import Faults, show
from kasatune.data.readers.tables import read_table
from kasatune.data.retrieval.chunks import cut_into_chunks
from kasatune.data.retrieval.documents import Document
from kasatune.data.retrieval.package_documentation import PACKAGE, documented_objects
from kasatune.data.tasks.rag_qa import answer_prompt
from kasatune.data.tasks.task_info import RetrievedPassage
from kasatune.errors import DataError
from kasatune.metrics.answer_match import contains_answer
from kasatune.simrag.leakage import LeakageCheck
from kasatune.simrag.prompts import extract_prompt, question_prompt
from kasatune.simrag.recipe import SimragRecipe, sources

INSTRUCTION, CONTEXT_QA, EXTRACT, ASK = "instruction", "context-qa", "extract-answer", "ask-question"

Row = dict[str, Any]
Item = TypeVar("Item")


class ContextQuestion(NamedTuple):
    """A question about a context that holds its answer, and where it comes from."""

    name: str
    context: str
    question: str
    answer: str
    source: str


def stage_one_rows(recipe: SimragRecipe, check: LeakageCheck) -> tuple[list[Row], Counter[str]]:
    """The rows as {"messages", "kind", "source"}, in an order drawn by training.seed, and what was left out by reason.

    Each context question is three rows: answer it, extract its answer, and ask it.

    Raises:
        DataError: a file is unreadable, or nothing is left.
    """
    section = recipe.stage_one
    left_out: Counter[str] = Counter()

    def draw(items: Sequence[Item], most: int, fault: Callable[[Item], str | None]) -> list[Item]:
        order = random.Random(recipe.training.seed).sample(range(len(items)), len(items))
        drawn: list[Item] = []
        for index in order:
            if len(drawn) == most:
                break
            if reason := fault(items[index]):
                left_out[reason] += 1
            else:
                drawn.append(items[index])
        return drawn

    chats, _ = read_chats(Path(section.instructions))
    numbered = draw(
        list(enumerate(chats, start=1)),
        section.max_instructions,
        lambda item: check.fault("\n".join(text for _, text in item[1]), item[1][-2][1]),
    )
    rows = [_row(chat, INSTRUCTION, f"{section.instructions}#{number}") for number, chat in sorted(numbered)]
    questions = [item for source in sources(section.context_qa) for item in _context_questions(source, recipe)]
    for item in draw(questions, section.max_context_qa, lambda item: check.fault(item.context, item.question)):
        passage = RetrievedPassage(item.name, item.context, 0.0)
        for kind, prompt, completion in (
            (CONTEXT_QA, answer_prompt(item.question, [passage]), item.answer),
            (EXTRACT, extract_prompt(item.context), item.answer),
            (ASK, question_prompt(item.context, item.answer), item.question),
        ):
            rows.append(_row((("user", prompt), ("assistant", completion)), kind, item.source))
    if not rows:
        raise DataError(f"stage_one: no rows are left ({dict(left_out)}); give rows that the evaluation does not hold")
    random.Random(recipe.training.seed).shuffle(rows)
    return rows, left_out


def _row(chat: Sequence[tuple[str, str]], kind: str, source: str) -> Row:
    return {"messages": [{"role": role, "content": text} for role, text in chat], "kind": kind, "source": source}


def _context_questions(source: str, recipe: SimragRecipe) -> Iterator[ContextQuestion]:
    if not source.startswith(PACKAGE):
        yield from _from_file(Path(source))
        return
    corpus = recipe.corpus
    for item in documented_objects(source.removeprefix(PACKAGE)):
        chunks = cut_into_chunks([Document(item.name, item.text)], corpus.chunk_words, corpus.chunk_overlap)
        for fact in item.facts:
            context = next((chunk.text for chunk in chunks if contains_answer(chunk.text, fact.answer)), None)
            if context is not None:
                place = f"{source}: {fact.kind} of {item.name}"
                yield ContextQuestion(item.name, context, fact.question, fact.answer, place)


def _from_file(path: Path) -> Iterator[ContextQuestion]:
    table = read_table(path, ["context", "question", "answer"])
    faults = Faults(str(path))
    rows = list(zip(*(table.columns[name] for name in ("context", "question", "answer")), strict=True))
    for index, row in enumerate(rows):
        for column, value in zip(("context", "question", "answer"), row, strict=True):
            if not isinstance(value, str) or not value.strip():
                what = "no text" if value is None or isinstance(value, str) else f"{show(value)} is not text"
                faults.add(f"{table.place(index, column)}: {what}")
    faults.raise_any()
    for number, (context, question, answer) in enumerate(rows, start=1):
        yield ContextQuestion(f"{path.stem} {number}", context, question, answer, f"{path}#{number}")

"""The rows of stage I: general instructions, context questions, and extracting answers and writing questions."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from kasatune.data.readers.conversations import read_chats
from kasatune.data.readers.faults import Faults, show
from kasatune.data.readers.tables import read_table
from kasatune.data.retrieval.chunks import Chunk, cut_into_chunks
from kasatune.data.retrieval.documents import Document
from kasatune.data.retrieval.package_documentation import PACKAGE, Fact, documented_objects
from kasatune.data.tasks.rag_qa import answer_prompt
from kasatune.data.tasks.task_info import RetrievedPassage
from kasatune.errors import DataError
from kasatune.metrics.answer_match import contains_answer, normalize_answer
from kasatune.simrag.leakage import LeakageCheck
from kasatune.simrag.prompts import claim_prompt, extract_prompt, question_prompt
from kasatune.simrag.recipe import SimragRecipe, sources

INSTRUCTION, CONTEXT_QA, EXTRACT, ASK = "instruction", "context-qa", "extract-answer", "ask-question"
STATE = "state-claim"

Row = dict[str, Any]
Item = TypeVar("Item")


class ContextQuestion(NamedTuple):
    """A question about a context that holds its answer, of which kind it is, and where it comes from.

    Attributes:
        statement: a true sentence of the context with the answer, if one is known.
    """

    name: str
    context: str
    question: str
    answer: str
    kind: str
    source: str
    statement: str | None = None


def stage_one_rows(recipe: SimragRecipe, check: LeakageCheck) -> tuple[list[Row], Counter[str]]:
    """The rows as {"messages", "kind", "source"}, in an order drawn by training.seed, and what was left out by reason.

    Each context question is three rows: answer it, extract its answer, and ask it; and a fourth one, which states a
    claim, where a sentence of the context is known to hold the answer. Of every kind of question equally many are
    drawn, as far as there are.

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
    drawn = draw(questions, len(questions), lambda item: check.fault(item.context, item.question))
    for item in _kinds_in_turn(drawn)[: section.max_context_qa]:
        passage = RetrievedPassage(item.name, item.context, 0.0)
        for kind, prompt, completion in (
            (CONTEXT_QA, answer_prompt(item.question, [passage]), item.answer),
            (EXTRACT, extract_prompt(item.context), item.answer),
            (ASK, question_prompt(item.name, item.context, item.answer), item.question),
            (STATE, claim_prompt(item.name, item.context, item.answer), item.statement),
        ):
            if completion is not None:
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
        for fact in (*item.facts, *item.descriptions):
            context = _context(fact, chunks)
            if context is not None:
                place = f"{source}: {fact.kind} of {item.name}"
                yield ContextQuestion(item.name, context, fact.question, fact.answer, fact.kind, place, fact.statement)


def _context(fact: Fact, chunks: Sequence[Chunk]) -> str | None:
    """The chunk with the answer, or the statement, that shares most words with the question; None if it was cut."""
    wanted = set(normalize_answer(fact.question).split())
    answering = [
        chunk.text
        for chunk in chunks
        if contains_answer(chunk.text, fact.answer) and (fact.statement or "") in " ".join(chunk.text.split())
    ]
    return max(answering, key=lambda text: len(wanted & set(normalize_answer(text).split())), default=None)


def _kinds_in_turn(questions: Sequence[ContextQuestion]) -> list[ContextQuestion]:
    """The first one of each kind, then the second one of each, and so on."""
    seen: Counter[str] = Counter()
    ranked: list[tuple[int, ContextQuestion]] = []
    for question in questions:
        ranked.append((seen[question.kind], question))
        seen[question.kind] += 1
    return [question for _, question in sorted(ranked, key=lambda item: item[0])]


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
        yield ContextQuestion(f"{path.stem} {number}", context, question, answer, "file", f"{path}#{number}")

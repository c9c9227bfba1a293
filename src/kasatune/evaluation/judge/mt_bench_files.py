"""Questions of one or two turns and answers to them, in the files of MT-Bench."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kasatune.data.readers.faults import Faults, show
from kasatune.data.readers.text_files import read_lines
from kasatune.errors import DataError

MOST_TURNS = 2
_REFERENCES = "reference_answer"


@dataclass(frozen=True)
class Question:
    """A question that a judge grades the answers to.

    Attributes:
        id: as the file has it, as text.
        category: such as "math".
        turns: one or two.
        references: the right answer to each turn; None where there is none.
    """

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Conversation:
    """A model's answers to the turns of one question, in their order."""

    question_id: str
    turns: tuple[str, ...]


def read_questions(path: Path) -> list[Question]:
    """The questions of a file, or of MT-Bench's folder with `question.jsonl` in it.

    A line is `{"question_id": 81, "category": "writing", "turns": ["...", "..."]}`. Reference answers are read from
    every file of the folder `reference_answer` beside the questions, where there is one; only the questions that
    have references for all their turns are graded against them.

    Raises:
        DataError: every fault of the files at once.
    """
    path = path / "question.jsonl" if path.is_dir() else path
    faults = Faults(str(path))
    found: dict[str, Question] = {}
    for place, row in _objects(path, faults):
        turns, category = row.get("turns"), row.get("category", "general")
        if "question_id" not in row or str(row["question_id"]) in found:
            faults.add(f"{place}: question_id {show(row.get('question_id'))} is missing or there twice")
        elif not isinstance(turns, list) or not _are_texts(turns) or not 1 <= len(turns) <= MOST_TURNS:
            faults.add(f"{place}: turns {show(turns)}; one or two texts are needed")
        elif not isinstance(category, str):
            faults.add(f"{place}: category {show(category)} is no text")
        else:
            found[str(row["question_id"])] = Question(str(row["question_id"]), category, tuple(turns))
    faults.raise_any()
    if not found:
        raise DataError(f"{path}: the file holds no questions")
    references: dict[str, tuple[str, ...]] = {}
    for file in sorted((path.parent / _REFERENCES).glob("*.jsonl")):
        references |= {one.question_id: one.turns for one in read_conversations(file).values()}
    return [
        Question(one.id, one.category, one.turns, references[one.id])
        if len(references.get(one.id, ())) == len(one.turns)
        else one
        for one in found.values()
    ]


def read_conversations(path: Path) -> dict[str, Conversation]:
    """Answers by question id, from a file in MT-Bench's form.

    A line is `{"question_id": 81, "choices": [{"index": 0, "turns": ["...", "..."]}]}`; the first choice counts, and
    the last of several lines for one question.

    Raises:
        DataError: every fault of the file at once.
    """
    faults = Faults(str(path))
    found = {}
    for place, row in _objects(path, faults):
        try:
            turns = row["choices"][0]["turns"]
            name = str(row["question_id"])
        except (KeyError, IndexError, TypeError):
            faults.add(f"{place}: no question_id, or no choices with turns")
            continue
        if _are_texts(turns, empty=True):
            found[name] = Conversation(name, tuple(turns))
        else:
            faults.add(f"{place}: turns {show(turns)} are no texts")
    faults.raise_any()
    return found


def _objects(path: Path, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as fault:
            faults.add(f"line {number}: not JSON ({fault})")
            continue
        if isinstance(row, dict):
            yield f"line {number}", row
        else:
            faults.add(f"line {number}: {show(row)} where an object is expected")


def _are_texts(value: Any, *, empty: bool = False) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and (empty or one.strip()) for one in value)

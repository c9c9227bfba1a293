"""Read questions of one or two turns, reference answers and model answers from files in MT-Bench's form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kasatune.data.readers.faults import Faults, show
from kasatune.data.readers.text_files import read_lines
from kasatune.errors import DataError

MAX_TURNS = 2
_REFERENCES = "reference_answer"


@dataclass(frozen=True)
class Question:
    """A question whose answers a judge grades.

    Attributes:
        id: id of the question in its file, as text.
        category: for example "math".
        turns: one or two messages of the user.
        references: the right answer to each turn; None if there is none.
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
    every file of the folder `reference_answer` next to the questions, if it exists; only questions with references for
    all their turns are graded against them.

    Raises:
        DataError: the files have faults; all are listed.
    """
    path = path / "question.jsonl" if path.is_dir() else path
    faults = Faults(str(path))
    questions: dict[str, Question] = {}
    for place, row in _objects(path, faults):
        turns, category = row.get("turns"), row.get("category", "general")
        if "question_id" not in row or str(row["question_id"]) in questions:
            faults.add(f"{place}: question_id {show(row.get('question_id'))} is missing or occurs twice")
        elif not isinstance(turns, list) or not _are_texts(turns) or not 1 <= len(turns) <= MAX_TURNS:
            faults.add(f"{place}: turns {show(turns)}; one or two texts are needed")
        elif not isinstance(category, str):
            faults.add(f"{place}: category {show(category)} is not text")
        else:
            questions[str(row["question_id"])] = Question(str(row["question_id"]), category, tuple(turns))
    faults.raise_any()
    if not questions:
        raise DataError(f"{path}: the file holds no questions")
    references: dict[str, tuple[str, ...]] = {}
    for file in sorted((path.parent / _REFERENCES).glob("*.jsonl")):
        references |= {answer.question_id: answer.turns for answer in read_conversations(file).values()}
    return [
        replace(question, references=references[question.id])
        if len(references.get(question.id, ())) == len(question.turns)
        else question
        for question in questions.values()
    ]


def read_conversations(path: Path) -> dict[str, Conversation]:
    """Answers by question id, from a file in MT-Bench's form.

    A line is `{"question_id": 81, "choices": [{"index": 0, "turns": ["...", "..."]}]}`; the first choice counts, and
    the last of several lines for one question.

    Raises:
        DataError: the file has faults; all are listed.
    """
    faults = Faults(str(path))
    conversations = {}
    for place, row in _objects(path, faults):
        try:
            turns = row["choices"][0]["turns"]
            name = str(row["question_id"])
        except (KeyError, IndexError, TypeError):
            faults.add(f"{place}: no question_id, or no choices with turns")
            continue
        if _are_texts(turns, empty=True):
            conversations[name] = Conversation(name, tuple(turns))
        else:
            faults.add(f"{place}: turns {show(turns)} are not texts")
    faults.raise_any()
    return conversations


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
    return isinstance(value, list) and all(isinstance(text, str) and (empty or text.strip()) for text in value)

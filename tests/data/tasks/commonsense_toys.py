"""Made-up rows in LLM-Adapters' form."""

from __future__ import annotations

import json
from pathlib import Path

OPENBOOKQA = (
    "Please choose the correct answer to the question: item {}\n\nAnswer1: red Answer2: blue Answer3: one Answer4: two"
    "\n\nAnswer format: answer1/answer2/answer3/answer4"
)
BOOLQ = (
    "Please answer the following question with true or false, question: is item {} red?\n\nAnswer format: true/false"
)


def row(instruction: str, answer: str) -> dict[str, str]:
    return {"instruction": instruction, "input": "", "output": f"the correct answer is {answer}", "answer": answer}


def openbookqa(number: int, start: int = 0) -> list[dict[str, str]]:
    return [row(OPENBOOKQA.format(index), f"answer{1 + index % 4}") for index in range(start, start + number)]


def boolq(number: int, start: int = 0) -> list[dict[str, str]]:
    return [row(BOOLQ.format(index), ("false", "true")[index % 2]) for index in range(start, start + number)]


def write_commonsense(folder: Path) -> Path:
    """Two of the tasks, each with twenty rows to train on and six to score."""
    for name, make in (("openbookqa", openbookqa), ("boolq", boolq)):
        (folder / name).mkdir(parents=True)
        (folder / name / "train.json").write_text(json.dumps(make(20)), encoding="utf-8")
        (folder / name / "test.json").write_text(json.dumps(make(6, start=50)), encoding="utf-8")
    return folder

"""Requests to a teacher model for new rows, and parsing the rows in its replies."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kasatune.data.readers.conversations import Chat, alpaca_message
from kasatune.llm_client import ChatRequest
from kasatune.synthesis.recipe import SynthesisRecipe

SUBJECTS = {
    "classification": "put a given text into one of the classes that the instruction names",
    "summarization": "shorten a given text and keep what matters",
    "coding": "write, explain or repair a piece of code",
    "closed_qa": "answer a question from a given passage alone",
}

_SYSTEM = "You write training data for language models. You reply with JSON alone, without any words around it."
_ASK = """Each task is of this kind: {kind}.

Examples:
{examples}

Write {number} new tasks of the same kind and style, each about another subject than the examples and the others. \
An instruction must hold everything that is needed, any passage or code included; an output must be complete and right.

Reply with one JSON object in this form:
{{"rows": [{{"instruction": "...", "output": "..."}}]}}"""
_FENCED = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """One new task and its answer."""

    instruction: str
    output: str


def seed_request(recipe: SynthesisRecipe, seeds: Sequence[Chat], number: int) -> ChatRequest:
    """The request with this number, from 0; the seeds that it shows are drawn from the recipe's seed and the number."""
    draw = random.Random(f"{recipe.data.seed} {number}")
    chosen = draw.sample(range(len(seeds)), min(recipe.seeds.shown, len(seeds)))
    examples = [{"instruction": seed_text(seeds[index]), "output": seeds[index][-1][1]} for index in sorted(chosen)]
    content = _ASK.format(
        kind=recipe.data.describe or SUBJECTS[recipe.data.subject],
        examples="\n".join(json.dumps(example, ensure_ascii=False) for example in examples),
        number=recipe.data.per_request,
    )
    return ChatRequest(
        recipe.teacher.model,
        (("system", _SYSTEM), ("user", content)),
        recipe.teacher.temperature,
        recipe.teacher.max_tokens,
        seed=recipe.data.seed + number,
    )


def seed_text(chat: Chat) -> str:
    """The last message of the user."""
    return next(text for role, text in reversed(chat) if role == "user")


def parse_rows(reply: str) -> tuple[list[Row], int] | None:
    """The rows in a reply and the number of its invalid items; None if it has no JSON in the requested form.

    Text and code fences around the JSON are ignored. A valid item has an instruction and an output that are texts and
    not empty; an `input` is appended to the instruction.
    """
    content = _json_in(reply)
    items = content.get("rows") if isinstance(content, dict) else content
    if not isinstance(items, list):
        return None
    rows = [row for row in map(_row, items) if row is not None]
    return rows, len(items) - len(rows)


def _json_in(text: str) -> Any:
    fenced = _FENCED.search(text)
    candidates = [text, *([fenced[1]] if fenced else [])]
    for begin, end in ("{}", "[]"):
        first, last = text.find(begin), text.rfind(end)
        if 0 <= first < last:
            candidates.append(text[first : last + 1])
    for candidate in candidates:
        try:
            return json.loads(candidate)
        except (ValueError, RecursionError):
            continue
    return None


def _row(item: Any) -> Row | None:
    if not isinstance(item, dict):
        return None
    instruction, input_text, output = (item.get(name) for name in ("instruction", "input", "output"))
    if not isinstance(instruction, str) or not isinstance(output, str) or not isinstance(input_text, str | None):
        return None
    if not instruction.strip() or not output.strip():
        return None
    return Row(alpaca_message(instruction.strip(), (input_text or "").strip()), output.strip())

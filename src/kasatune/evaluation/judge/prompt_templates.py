"""Prompts for a judge model: kasatune's own wording, or a file in MT-Bench's form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kasatune.data.readers.faults import Faults
from kasatune.data.readers.text_files import read_lines
from kasatune.errors import DataError
from kasatune.llm_client import ChatRequest

_FIELD = re.compile(r"\{([a-z_0-9]+)\}")

_FAIR = (
    "Judge what is written, not how long it is or who may have written it. Say in a few sentences what is right and"
    " what is wrong before you decide."
)
_AGAINST = " A reference answer is given: find every place where the answer contradicts it."
_RATE = (
    "End with one line in exactly this form, where N is a whole number from {low} (useless) to {high} (could not be"
    " better): Rating: [[N]]"
)
_CHOOSE = (
    "End with one line in exactly this form: [[A]] if assistant A is better, [[B]] if assistant B is better, [[C]] if"
    " neither is. The order in which they stand means nothing."
)
_LAST_TURN = " Both turns are shown so that you know the context; what you judge is the second answer."
_TASK = "A user asked an assistant something. You grade how well the answer serves the user: correct, complete, clear."
_PAIR = "Two assistants answered the same user. You decide which of them serves the user better."


@dataclass(frozen=True)
class Prompt:
    """Prompt of one kind of request to a judge.

    Attributes:
        system: the system message.
        template: the user message, with fields in braces.
    """

    system: str
    template: str

    def request(self, model: str, fields: Mapping[str, str], max_tokens: int) -> ChatRequest:
        """The request to `model`, with all fields filled in at once, so that braces in an answer are not fields."""
        text = _FIELD.sub(lambda match: fields.get(match[1], match[0]), self.template)
        return ChatRequest(model, (("system", self.system), ("user", text)), 0.0, max_tokens)


Prompts = Mapping[str, Prompt]
"""Prompts by MT-Bench's names: single-v1, single-math-v1 (with a reference), pair-v2 and pair-math-v1, each with
-multi-turn for the second turn; and kasatune's own score-v1 and score-math-v1, from 0 to 10."""


def own_prompts() -> dict[str, Prompt]:
    """Every prompt in kasatune's own wording."""
    prompts = {}
    for tail, judged, turns in (("", "", _ONE_TURN), ("-multi-turn", _LAST_TURN, _TWO_TURNS)):
        for name, low in (("single", 1), ("score", 0)):
            end = _RATE.format(low=low, high=10)
            prompts[f"{name}-v1{tail}"] = Prompt(f"{_TASK}{judged} {_FAIR}\n{end}", turns.single)
            prompts[f"{name}-math-v1{tail}"] = Prompt(
                f"{_TASK}{judged}{_AGAINST} {_FAIR}\n{end}", turns.reference + turns.single
            )
        prompts[f"pair-v2{tail}"] = Prompt(f"{_PAIR}{judged} {_FAIR}\n{_CHOOSE}", turns.pair)
        prompts[f"pair-math-v1{tail}"] = Prompt(
            f"{_PAIR}{judged}{_AGAINST} {_FAIR}\n{_CHOOSE}", turns.reference + turns.pair
        )
    return prompts


@dataclass(frozen=True)
class _Turns:
    single: str
    pair: str
    reference: str


_ONE_TURN = _Turns(
    single="<question>\n{question}\n</question>\n\n<answer>\n{answer}\n</answer>",
    pair="<question>\n{question}\n</question>\n\n<assistant A>\n{answer_a}\n</assistant A>\n\n"
    "<assistant B>\n{answer_b}\n</assistant B>",
    reference="<reference>\n{ref_answer_1}\n</reference>\n\n",
)
_TWO_TURNS = _Turns(
    single="<question 1>\n{question_1}\n</question 1>\n\n<answer 1>\n{answer_1}\n</answer 1>\n\n"
    "<question 2>\n{question_2}\n</question 2>\n\n<answer 2>\n{answer_2}\n</answer 2>",
    pair="<question 1>\n{question_1}\n</question 1>\n\n<question 2>\n{question_2}\n</question 2>\n\n"
    "<assistant A, answer 1>\n{answer_a_1}\n</assistant A, answer 1>\n\n"
    "<assistant A, answer 2>\n{answer_a_2}\n</assistant A, answer 2>\n\n"
    "<assistant B, answer 1>\n{answer_b_1}\n</assistant B, answer 1>\n\n"
    "<assistant B, answer 2>\n{answer_b_2}\n</assistant B, answer 2>",
    reference="<reference 1>\n{ref_answer_1}\n</reference 1>\n\n<reference 2>\n{ref_answer_2}\n</reference 2>\n\n",
)


def load_prompts(path: Path) -> dict[str, Prompt]:
    """The prompts of a file in MT-Bench's form, and kasatune's own for the names that it lacks.

    A line is `{"name": "single-v1", "system_prompt": "...", "prompt_template": "...{question}..."}`.

    Raises:
        DataError: the file has faults; all are listed.
    """
    own, faults = own_prompts(), Faults(str(path))
    prompts = {}
    for number, line in enumerate(read_lines(path), start=1):
        try:
            row = json.loads(line)
            name, system, template = row["name"], row["system_prompt"], row["prompt_template"]
        except (ValueError, KeyError, TypeError, RecursionError):
            faults.add(f"line {number}: no object with name, system_prompt and prompt_template")
            continue
        if name not in own:
            faults.add(f"line {number}: {name!r} is not the name of a prompt (names: {', '.join(own)})")
            continue
        unexpected = set(_FIELD.findall(template)) ^ set(_FIELD.findall(own[name].template))
        if unexpected:
            faults.add(
                f"line {number}: {name} must have the fields of kasatune's own prompt; differing: {sorted(unexpected)}"
            )
        prompts[name] = Prompt(system, template)
    faults.raise_any()
    if not prompts:
        raise DataError(f"{path}: the file holds no prompts")
    return {**own, **prompts}

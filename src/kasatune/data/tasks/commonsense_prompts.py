"""LLM-Adapters' prompts, verbatim, its parsing of answers, and the same questions in lm-eval's form.

Source: AGI-Edgerunners/LLM-Adapters, commit 8166572, finetune.py and commonsense_evaluate.py; lm-eval 0.4.13, the
files of the tasks boolq, piqa, social_iqa, hellaswag, winogrande, arc_easy, arc_challenge and openbookqa.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BLANK = 16 * " "
_TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request."

TRAINING_PROMPT = f"{_TASK}  \n\n{_BLANK}### Instruction:\n{_BLANK}{{}}\n{_BLANK}\n{_BLANK}### Response:\n{_BLANK}"
"""The prompt of finetune.py: two blanks after the first sentence, and a line of blanks before the response."""

EVALUATION_PROMPT = f"{_TASK} \n\n{_BLANK}### Instruction:\n{_BLANK}{{}}\n\n{_BLANK}### Response:\n{_BLANK}"
"""The prompt of commonsense_evaluate.py, which differs slightly from the one in training."""

_INSTRUCTION = re.compile(r"(Please [^:]*?)(?:, question)?: (.*?)\s*Answer format: (\S+)\s*", re.DOTALL)
_OPTION = re.compile(r"\s*\b(?:Answer|Solution|Ending|Option)\d: ?")
_ANSWERS = {
    "true": "true|false",
    "solution1": "solution1|solution2",
    "ending1": "ending1|ending2|ending3|ending4",
    "option1": "option1|option2",
    "answer1": "answer1|answer2|answer3|answer4|answer5",
}


@dataclass(frozen=True)
class Question:
    """The parts of an instruction.

    Attributes:
        text: the question, or the sentence with its blank.
        options: the texts to choose from; empty for a yes-or-no question.
        answers: the answer words, in the order of the options.
    """

    text: str
    options: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """A question as pairs whose log-likelihoods are compared.

    Attributes:
        pairs: (context, continuation) of each choice.
        answers: the answer word of each choice, in LLM-Adapters' form.
        lengths: number of letters of each choice, by which acc_norm divides.
    """

    pairs: tuple[tuple[str, str], ...]
    answers: tuple[str, ...]
    lengths: tuple[int, ...]


def instruction_of(prompt: str) -> str:
    """The instruction in a complete prompt of either form; `prompt` itself if it has neither form."""
    _, head, rest = prompt.partition(f"{_BLANK}### Instruction:\n{_BLANK}")
    return rest.rpartition(f"{_BLANK}### Response:")[0].rstrip() if head else prompt


def read_instruction(instruction: str) -> Question | None:
    """The question, its options and its answers; None if the instruction is not in LLM-Adapters' form."""
    match = _INSTRUCTION.fullmatch(instruction)
    if match is None:
        return None
    answers = tuple(match[3].split("/"))
    text, *options = _OPTION.split(match[2])
    if answers[0] not in _ANSWERS or (len(options) != len(answers) if answers[0] != "true" else bool(options)):
        return None
    return Question(text.strip(), tuple(option.strip() for option in options), answers)


def extract(prompt: str, written: str) -> str:
    """The answer in generated text: the first word that is an answer to this kind of question; "" if there is none.

    As in LLM-Adapters, which splits prompt and answer at "### Response:", text after a second such mark is ignored.
    """
    question = read_instruction(instruction_of(prompt))
    if question is None:
        return ""
    match = re.search(_ANSWERS[question.answers[0]], written.split("### Response:")[0])
    return match[0] if match else ""


def ranking(task: str, prompt: str) -> Ranking | None:
    """The question of a prompt in lm-eval's form, zero-shot; None if the prompt has no question in LLM-Adapters' form.

    Differences from lm-eval: the context lacks BoolQ's passage, which LLM-Adapters' files do not have; HellaSwag's
    texts still contain the marks in brackets.

    Args:
        task: name of the task, such as "commonsense/piqa"; for any other name, questions with options get ARC's form.
        prompt: complete prompt of either form.
    """
    question = read_instruction(instruction_of(prompt))
    if question is None:
        return None
    kind = task.rpartition("/")[2]
    if not question.options:
        context = f"Question: {question.text.rstrip('?').rstrip()}?\nAnswer:"
        return _ranked([context] * 2, ["no", "yes"], ("false", "true"))
    if question.answers[0] == "option1" and "_" in question.text:
        before, _, after = question.text.partition("_")
        contexts = [before + option for option in question.options]
        return _ranked(contexts, [after.strip()] * len(contexts), question.answers)
    form = {"social_i_qa": "Q: {}\nA:", "openbookqa": "{}"}.get(kind, "Question: {}\nAnswer:")
    if question.answers[0] == "ending1":
        form = "{}"
    return _ranked([form.format(question.text)] * len(question.options), question.options, question.answers)


def _ranked(contexts: list[str], choices: list[str] | tuple[str, ...], answers: tuple[str, ...]) -> Ranking:
    pairs = tuple((context, f" {choice}") for context, choice in zip(contexts, choices, strict=True))
    return Ranking(pairs, answers, tuple(len(choice) for choice in choices))

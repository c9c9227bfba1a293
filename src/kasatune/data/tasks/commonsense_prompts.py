"""LLM-Adapters' prompts to the letter, its reading of answers, and the same questions as lm-eval asks them.

Source: AGI-Edgerunners/LLM-Adapters, commit 8166572, finetune.py and commonsense_evaluate.py; lm-eval 0.4.13, the
files of the tasks boolq, piqa, social_iqa, hellaswag, winogrande, arc_easy, arc_challenge and openbookqa.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BLANK = 16 * " "
_TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request."

TRAINING_PROMPT = f"{_TASK}  \n\n{_BLANK}### Instruction:\n{_BLANK}{{}}\n{_BLANK}\n{_BLANK}### Response:\n{_BLANK}"
"""As finetune.py has it: two blanks after the first sentence, and a line of blanks before the response."""

EVALUATION_PROMPT = f"{_TASK} \n\n{_BLANK}### Instruction:\n{_BLANK}{{}}\n\n{_BLANK}### Response:\n{_BLANK}"
"""As commonsense_evaluate.py has it, which is not quite what was trained on."""

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
    """An instruction taken apart.

    Attributes:
        text: the question, or the sentence with its blank.
        options: the texts to choose from; none for a question of yes or no.
        answers: what the answer is to be, in the order of the options.
    """

    text: str
    options: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """A question as pairs whose log-likelihoods are compared.

    Attributes:
        pairs: (context, continuation) of each choice.
        answers: the answer that each choice stands for, in LLM-Adapters' words.
        lengths: letters of each choice, by which acc_norm divides.
    """

    pairs: tuple[tuple[str, str], ...]
    answers: tuple[str, ...]
    lengths: tuple[int, ...]


def evaluation_prompt(instruction: str) -> str:
    """The whole prompt of an instruction, as answers are asked for."""
    return EVALUATION_PROMPT.format(instruction)


def instruction_of(prompt: str) -> str:
    """The instruction in a whole prompt of either form; `prompt` itself where it is none."""
    _, head, rest = prompt.partition(f"{_BLANK}### Instruction:\n{_BLANK}")
    return rest.rpartition(f"{_BLANK}### Response:")[0].rstrip() if head else prompt


def read_instruction(instruction: str) -> Question | None:
    """The question, its options and its answers; None where the instruction is not in LLM-Adapters' form."""
    found = _INSTRUCTION.fullmatch(instruction)
    if found is None:
        return None
    answers = tuple(found[3].split("/"))
    text, *options = _OPTION.split(found[2])
    if answers[0] not in _ANSWERS or (len(options) != len(answers) if answers[0] != "true" else bool(options)):
        return None
    return Question(text.strip(), tuple(option.strip() for option in options), answers)


def extract(prompt: str, written: str) -> str:
    """The answer in what a model wrote: the first of the words that its kind of question allows; "" for none.

    LLM-Adapters cuts the text at the marks "### Response:" and keeps what lies between the first and the second.
    """
    question = read_instruction(instruction_of(prompt))
    if question is None:
        return ""
    found = re.search(_ANSWERS[question.answers[0]], written.split("### Response:")[0])
    return found[0] if found else ""


def ranking(task: str, prompt: str) -> Ranking | None:
    """The question of a prompt as lm-eval asks it, without an example before it.

    Differences: BoolQ's passage is not in LLM-Adapters' files and so not in the context; HellaSwag's texts are not
    cleaned of the marks in brackets.

    Args:
        task: name of the task, "commonsense/piqa"; of the mixture, or of none, all questions are asked as ARC's.
        prompt: of either form.
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

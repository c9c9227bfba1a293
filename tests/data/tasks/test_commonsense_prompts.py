"""LLM-Adapters' prompts and answers, and lm-eval's questions, against strings written out by hand."""

from __future__ import annotations

import json

import pytest

from kasatune.data.tasks.commonsense_prompts import (
    EVALUATION_PROMPT,
    TRAINING_PROMPT,
    extract,
    instruction_of,
    ranking,
    read_instruction,
)
from tests.shared_data import shared

BOOLQ = "Please answer the following question with true or false, question: is it so?\n\nAnswer format: true/false"
PIQA = (
    "Please choose the correct solution to the question: open a tin\n\nSolution1: with a saw \n\nSolution2: by hand\n\n"
    "Answer format: solution1/solution2"
)
SIQA = (
    "Please choose the correct answer to the question: Kim left. Why?\n\nAnswer1: to go Answer2: to stay Answer3: no"
    "\n\nAnswer format: answer1/answer2/answer3"
)
HELLASWAG = (
    "Please choose the correct ending to complete the given sentence: Drums: A man\n\nEnding1: plays. Ending2: sleeps. "
    "Ending3: eats. Ending4: reads.\n\nAnswer format: ending1/ending2/ending3/ending4"
)
WINOGRANDE = (
    "Please choose the correct answer to fill in the blank to complete the given sentence: The cup and _ fell down.\n\n"
    "Option1: Ann Option2: Bob Answer format: option1/option2"
)
ALL = (BOOLQ, PIQA, SIQA, HELLASWAG, WINOGRANDE)


def test_prompts_equal_llm_adapters_to_the_letter():
    # commonsense_evaluate.py and finetune.py at commit 8166572, the output left out of the second
    asked = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request. \n"
        "\n"
        "                ### Instruction:\n"
        "                X\n"
        "\n"
        "                ### Response:\n"
        "                "
    )
    taught = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.  \n"
        "\n"
        "                ### Instruction:\n"
        "                X\n"
        "                \n"
        "                ### Response:\n"
        "                "
    )
    assert EVALUATION_PROMPT.format("X") == asked
    assert TRAINING_PROMPT.format("X") == taught


@pytest.mark.parametrize("instruction", ALL)
def test_instruction_is_recovered_from_either_prompt(instruction):
    assert instruction_of(EVALUATION_PROMPT.format(instruction)) == instruction
    assert instruction_of(TRAINING_PROMPT.format(instruction)) == instruction
    assert instruction_of("something else") == "something else"


@pytest.mark.parametrize(
    ("instruction", "written", "answer"),
    [
        (BOOLQ, "the correct answer is true", "true"),
        (BOOLQ, "the correct answer is untrue, false", "true"),  # the first hit, inside a word too
        (BOOLQ, "the correct answer is True", ""),
        (PIQA, "solution3, or solution2", "solution2"),
        (SIQA, "answer5", "answer5"),  # not among its options, and still an answer: a wrong one
        (SIQA, "answer", ""),
        (SIQA, "ending1", ""),
        (HELLASWAG, "ending4 ending1", "ending4"),
        (WINOGRANDE, "\n option2", "option2"),
        (WINOGRANDE, "nothing\n### Response: option1", ""),  # they keep what stands before a second mark
        ("no such form", "true", ""),
    ],
)
def test_answers_are_parsed_as_in_llm_adapters(instruction, written, answer):
    assert extract(EVALUATION_PROMPT.format(instruction), written) == answer


def test_questions_equal_lm_evals():
    asked = {
        "commonsense/boolq": (
            BOOLQ,
            [("Question: is it so?\nAnswer:", " no"), ("Question: is it so?\nAnswer:", " yes")],
        ),
        "commonsense/piqa": (
            PIQA,
            [("Question: open a tin\nAnswer:", " with a saw"), ("Question: open a tin\nAnswer:", " by hand")],
        ),
        "commonsense/social_i_qa": (SIQA, [("Q: Kim left. Why?\nA:", f" {one}") for one in ("to go", "to stay", "no")]),
        "commonsense/openbookqa": (SIQA, [("Kim left. Why?", f" {one}") for one in ("to go", "to stay", "no")]),
        "commonsense/arc-easy": (
            SIQA,
            [("Question: Kim left. Why?\nAnswer:", f" {one}") for one in ("to go", "to stay", "no")],
        ),
        "commonsense/hellaswag": (
            HELLASWAG,
            [("Drums: A man", f" {one}.") for one in ("plays", "sleeps", "eats", "reads")],
        ),
        "commonsense/winogrande": (
            WINOGRANDE,
            [("The cup and Ann", " fell down."), ("The cup and Bob", " fell down.")],
        ),
    }
    for task, (instruction, pairs) in asked.items():
        found = ranking(task, EVALUATION_PROMPT.format(instruction))
        assert found is not None and list(found.pairs) == pairs, task
    assert ranking("commonsense/boolq", EVALUATION_PROMPT.format(BOOLQ)).answers == ("false", "true")
    assert ranking("commonsense/piqa", EVALUATION_PROMPT.format(PIQA)).lengths == (10, 7)
    assert ranking("commonsense/piqa", "no such form") is None


@pytest.mark.parametrize(("task", "options"), [("boolq", 0), ("openbookqa", 4), ("social_i_qa", 3), ("winogrande", 2)])
def test_every_real_row_is_parsed(task, options):
    rows = json.loads(shared(f"commonsense/{task}/test.json").read_text(encoding="utf-8"))
    for row in rows:
        question = read_instruction(row["instruction"])
        assert question is not None and len(question.options) == options
        assert row["answer"] in question.answers
        assert extract(EVALUATION_PROMPT.format(row["instruction"]), row["output"]) == row["answer"]
        found = ranking(f"commonsense/{task}", EVALUATION_PROMPT.format(row["instruction"]))
        assert found is not None and all(context and choice.strip() for context, choice in found.pairs)

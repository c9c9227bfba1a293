"""Questions with a choice of answers, scored twice: by what a model writes, and by what it holds the likeliest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kasatune.data.tasks.commonsense import FOLDERS, MIXTURE
from kasatune.data.tasks.commonsense_prompts import Ranking, extract, ranking

Pair = tuple[str, str]


class Answered(NamedTuple):
    """Scores and, for each prompt, the answers that they come from.

    Attributes:
        metrics: `accuracy` (of the answers that were written, LLM-Adapters' protocol), `unparsed` (the share of rows
            whose text holds no answer; they count as wrong), `acc` and `acc_norm` (lm-eval's protocol).
        answers: for each prompt the answer that was written ("" for none) and those of acc and acc_norm.
    """

    metrics: dict[str, float]
    answers: list[dict[str, str]]


def has_choices(task: str) -> bool:
    """Whether the rows of a task are questions with a choice of answers."""
    return task.partition("/")[0] == MIXTURE


def answer_scores(
    task: str,
    split: str,
    prompts: Sequence[str],
    texts: Sequence[str],
    references: Sequence[Sequence[str]],
    log_likelihoods: Callable[[Sequence[Pair]], Sequence[float]],
) -> Answered:
    """Both protocols; a prompt counts as often as it has references.

    acc takes the choice of the largest log-likelihood, acc_norm that of the largest one per letter of the choice; of
    equal ones the first.

    Args:
        task: name of the task.
        split: of the mixture, may be the name of one of its tasks, whose questions are asked in its own form then.
        prompts: whole.
        texts: what the model wrote, one a prompt.
        references: what should have been written.
        log_likelihoods: of (context, continuation) pairs.
    """
    form = f"{MIXTURE}/{split}" if split in FOLDERS else task
    asked = [ranking(form, prompt) for prompt in prompts]
    pairs = [pair for one in asked if one is not None for pair in one.pairs]
    values = iter(log_likelihoods(pairs))
    answers = []
    for prompt, text, one in zip(prompts, texts, asked, strict=True):
        found = {"written": extract(prompt, text), "acc": "", "acc_norm": ""}
        if one is not None:
            found |= _chosen(one, [next(values) for _ in one.pairs])
        answers.append(found)
    return Answered(_metrics(prompts, references, answers), answers)


def right(
    prompts: Sequence[str], references: Sequence[Sequence[str]], answers: Sequence[dict[str, str]], key: str
) -> list[bool]:
    """Whether the answer `key` of each row is right, a row for each reference, in their order."""
    return [
        answer[key] == extract(prompt, reference)
        for prompt, own, answer in zip(prompts, references, answers, strict=True)
        for reference in own
    ]


def _chosen(one: Ranking, values: Sequence[float]) -> dict[str, str]:
    choices = range(len(values))
    best = max(choices, key=lambda index: values[index])
    best_norm = max(choices, key=lambda index: values[index] / one.lengths[index])
    return {"acc": one.answers[best], "acc_norm": one.answers[best_norm]}


def _metrics(
    prompts: Sequence[str], references: Sequence[Sequence[str]], answers: Sequence[dict[str, str]]
) -> dict[str, float]:
    rows: dict[str, list[Any]] = {
        name: right(prompts, references, answers, key)
        for name, key in (("accuracy", "written"), ("acc", "acc"), ("acc_norm", "acc_norm"))
    }
    silent = [not answer["written"] for answer, own in zip(answers, references, strict=True) for _ in own]
    return {name: sum(values) / len(values) for name, values in {**rows, "unparsed": silent}.items()}

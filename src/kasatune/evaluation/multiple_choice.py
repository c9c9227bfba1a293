"""Score multiple-choice questions twice: by the answer that a model writes, and by log-likelihood (acc, acc_norm)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kasatune.data.tasks.commonsense import FOLDERS, MIXTURE
from kasatune.data.tasks.commonsense_prompts import Ranking, extract, ranking
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.evaluation.text_scores import GeneratedText, LogLikelihoods, TextScores


def score_choices(info: TaskInfo, generated: GeneratedText, log_likelihoods: LogLikelihoods) -> TextScores:
    """Both protocols; a prompt counts as often as it has references.

    `accuracy` is that of the written answers (LLM-Adapters' protocol) and `unparsed` the share of rows whose text has
    no answer, which count as wrong. `acc` chooses the answer with the largest log-likelihood and `acc_norm` the one
    with the largest log-likelihood per letter, the first of equal ones (lm-eval's protocol).

    Args:
        info: row of the task.
        generated: its split may be the name of one of the mixture's tasks, whose own question form is then used.
        log_likelihoods: of (context, continuation) pairs.

    Returns:
        The metrics and, for each prompt, {"written": answer, "" if there is none, "acc": answer, "acc_norm": answer}.
    """
    task = f"{MIXTURE}/{generated.split}" if generated.split in FOLDERS else info.name
    rankings = [ranking(task, prompt) for prompt in generated.prompts]
    values = iter(log_likelihoods([pair for each in rankings if each is not None for pair in each.pairs]))
    answers: list[dict[str, str]] = []
    for prompt, text, choices in zip(generated.prompts, generated.texts, rankings, strict=True):
        answer = {"written": extract(prompt, text), "acc": "", "acc_norm": ""}
        if choices is not None:
            answer |= _likeliest(choices, [next(values) for _ in choices.pairs])
        answers.append(answer)
    return TextScores(_metrics(generated.prompts, generated.references, answers), answers)


def are_correct(
    prompts: Sequence[str], references: Sequence[Sequence[str]], answers: Sequence[dict[str, str]], key: str
) -> list[bool]:
    """Whether the answer `key` of each row is right; one row for each reference, in their order."""
    return [
        answer[key] == extract(prompt, reference)
        for prompt, own_references, answer in zip(prompts, references, answers, strict=True)
        for reference in own_references
    ]


def _likeliest(choices: Ranking, values: Sequence[float]) -> dict[str, str]:
    indices = range(len(values))
    best = max(indices, key=lambda index: values[index])
    best_per_letter = max(indices, key=lambda index: values[index] / choices.lengths[index])
    return {"acc": choices.answers[best], "acc_norm": choices.answers[best_per_letter]}


def _metrics(
    prompts: Sequence[str], references: Sequence[Sequence[str]], answers: Sequence[dict[str, str]]
) -> dict[str, float]:
    rows: dict[str, list[Any]] = {
        name: are_correct(prompts, references, answers, key)
        for name, key in (("accuracy", "written"), ("acc", "acc"), ("acc_norm", "acc_norm"))
    }
    rows["unparsed"] = [not answer["written"] for answer, own in zip(answers, references, strict=True) for _ in own]
    return {name: sum(values) / len(values) for name, values in rows.items()}

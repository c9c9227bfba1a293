"""Scores of the text that a model wrote, and the rows that they are scores of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kasatune.data.tasks.dataset import Rows
from kasatune.metrics.generation import generation_scores


class Asked(NamedTuple):
    """The distinct prompts of some rows, in the order in which they first appear.

    Attributes:
        prompts: each once.
        references: for each of them the completions of all its rows.
    """

    prompts: list[str]
    references: list[list[str]]


def asked(rows: Rows) -> Asked:
    """Rows of equal prompt as one input with several references."""
    groups: dict[str, list[str]] = {}
    for prompt, completion in zip(rows.first, rows.labels, strict=True):
        groups.setdefault(prompt, []).append(str(completion))
    return Asked(list(groups), list(groups.values()))


def text_scores(
    task: str, names: Sequence[str], prompts: Sequence[str], texts: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """The scores `names` of the texts that a model wrote for the prompts of a task.

    Args:
        task: its name.
        names: of the task's metrics.
        prompts: what the model read.
        texts: what it wrote, one a prompt.
        references: right answers, one or more a prompt.
    """
    return generation_scores(names, texts, references)

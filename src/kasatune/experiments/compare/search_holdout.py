"""The rows of the hyperparameter search: training rows only, some of them held out to score the trials on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from kasatune.data.tasks.dataset import TaskData, rows_sha256
from kasatune.errors import DataError
from kasatune.evaluation.text_scores import prompt_numbers
from kasatune.experiments.compare.spec import HELD_OUT, SEARCH_SEED
from kasatune.wording import counted

FEWEST_ROWS = 5


def search_data(data: TaskData) -> TaskData:
    """`data` with its training rows split once into "train" and a held-out "validation".

    The split is stratified by label as far as integer counts allow; rows of text with one
    prompt stay together. It never contains the rows that the comparison reports on.

    Raises:
        DataError: there are too few training rows to split.
    """
    rows = data.splits["train"]
    if len(rows) < FEWEST_ROWS:
        raise DataError(
            f"task {data.name}: {counted(len(rows), 'training row')}; a search needs at least {FEWEST_ROWS}, "
            "or skip it with --trials 1"
        )
    if data.kind == "generation":
        held_out = _draw_prompts(prompt_numbers(rows))
    else:
        held_out = _draw_held_out(list(rows.labels), classes=data.kind == "classification")
    excluded = set(held_out)
    splits = {
        "train": rows.pick([index for index in range(len(rows)) if index not in excluded]),
        "validation": rows.pick(held_out),
    }
    return dataclasses.replace(data, splits=splits, sha256=rows_sha256(splits), notes=())


def _draw_prompts(prompts: list[int]) -> list[int]:
    """Indices of at least a share `HELD_OUT` of the rows, all rows of the drawn prompts, sorted.

    Raises:
        DataError: all rows have the same prompt.
    """
    order = np.random.default_rng(SEARCH_SEED).permutation(max(prompts) + 1).tolist()
    if len(order) < 2:
        raise DataError("every training row has the same prompt; a search needs others, or skip it with --trials 1")
    sizes = Counter(prompts)
    drawn: set[int] = set()
    for prompt in order[:-1]:
        drawn.add(prompt)
        if sum(sizes[each] for each in drawn) >= HELD_OUT * len(prompts):
            break
    return [index for index, prompt in enumerate(prompts) if prompt in drawn]


def _draw_held_out(labels: list[Any], *, classes: bool) -> list[int]:
    """Indices of a share `HELD_OUT` of the rows, sorted."""
    generator = np.random.default_rng(SEARCH_SEED)
    groups: dict[Any, list[int]] = {}
    for index in generator.permutation(len(labels)).tolist():
        groups.setdefault(labels[index] if classes else None, []).append(index)
    wanted = max(1, round(HELD_OUT * len(labels)))
    sizes = Counter({label: int(HELD_OUT * len(group)) for label, group in groups.items()})
    for label, _ in sorted(groups.items(), key=lambda item: (-(HELD_OUT * len(item[1]) % 1), str(item[0]))):
        if sizes.total() < wanted:
            sizes[label] += 1
    return sorted(index for label, group in groups.items() for index in group[: sizes[label]])

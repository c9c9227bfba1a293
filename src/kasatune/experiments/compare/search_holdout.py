"""The rows that a search sees: training rows alone, some of them kept back to be scored on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from kasatune.data.tasks.dataset import TaskData, rows_sha256
from kasatune.errors import DataError
from kasatune.experiments.compare.spec import HELD_OUT, SEARCH_SEED

FEWEST = 5


def search_data(data: TaskData) -> TaskData:
    """`data` with its training rows cut in two, drawn once: "train", and "validation" to score trials on.

    The draw keeps the share of each label as far as whole rows allow. The rows that the comparison reports on are not
    in it.

    Raises:
        DataError: there are too few training rows to cut.
    """
    rows = data.splits["train"]
    if len(rows) < FEWEST:
        raise DataError(f"task {data.name}: {len(rows)} training rows; a search needs {FEWEST} at least, or --trials 1")
    kept_back = _drawn(list(rows.labels), classes=data.kind == "classification")
    chosen = set(kept_back)
    splits = {
        "train": rows.pick([index for index in range(len(rows)) if index not in chosen]),
        "validation": rows.pick(kept_back),
    }
    return dataclasses.replace(data, splits=splits, sha256=rows_sha256(splits), notes=())


def _drawn(labels: list[Any], *, classes: bool) -> list[int]:
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

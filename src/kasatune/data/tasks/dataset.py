"""The rows of a task, whatever they were read from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from kasatune.data.tasks.table import TaskInfo, TaskKind


class TaskSettings(Protocol):
    """What a task reads of a recipe: its `task` section has these attributes, and any other object may."""

    @property
    def name(self) -> str:
        """A name of `TASKS`."""
        ...

    @property
    def data(self) -> str | None:
        """Folder of a benchmark; None takes it from the hub."""
        ...

    @property
    def revision(self) -> str | None:
        """Commit, branch or tag of a benchmark that is taken from the hub; None for its newest commit."""
        ...

    @property
    def train(self) -> str | None:
        """Your training file."""
        ...

    @property
    def validation(self) -> str | float | None:
        """Your validation file, or the share of the training rows to keep for it, between 0 and 1."""
        ...

    @property
    def text(self) -> str | Sequence[str] | None:
        """The column of the text, or of both texts of a pair."""
        ...

    @property
    def label(self) -> str | None:
        """The column of the label or number."""
        ...

    @property
    def prompt(self) -> str | None:
        """The column of your prompts."""
        ...

    @property
    def completion(self) -> str | None:
        """The column of what is to follow them."""
        ...

    @property
    def max_train(self) -> int | None:
        """How many training rows to keep, the first ones; None keeps all."""
        ...

    @property
    def max_eval(self) -> int | None:
        """The same for each other split."""
        ...


@dataclass(frozen=True)
class Rows:
    """Texts with their labels, in the order of their file.

    Attributes:
        first: the texts; whole prompts where text is generated.
        second: their partners, or None where a row is one text.
        labels: label numbers (classification), numbers (regression), or what follows the prompt (generation).
    """

    first: list[str]
    second: list[str] | None
    labels: list[Any]

    def __len__(self) -> int:
        return len(self.first)

    def head(self, number: int) -> Rows:
        """The first `number` rows, or all where there are fewer."""
        return self.pick(range(len(self))[:number])

    def pick(self, indices: Sequence[int]) -> Rows:
        """The rows at `indices`."""
        second = None if self.second is None else [self.second[index] for index in indices]
        labels = [self.labels[index] for index in indices]
        return Rows([self.first[index] for index in indices], second, labels)

    def texts(self) -> list[tuple[str, ...]]:
        """The text or texts of each row."""
        if self.second is None:
            return [(first,) for first in self.first]
        return list(zip(self.first, self.second, strict=True))


@dataclass(frozen=True)
class TaskData:
    """A task with its rows.

    Attributes:
        name: of the task.
        kind: "classification", "regression" or "generation".
        label_names: the word of each label number; None where there are none.
        splits: "train", "validation", and further ones where the task has them ("validation_mismatched", "test").
        metric_names: the scores of the task.
        primary: the score that selects the best epoch.
        paper_metric: the score that the KaSA paper reports, or None.
        text_fields: 1, or 2 where a row is a pair of texts.
        sha256: of the rows in `splits`; equal rows have equal sums, wherever they were read from.
        source: where the rows were read from, with the revision where the hub has one.
        notes: what was left out, cut or found odd, one sentence each, to be shown to the user.
        pins: keys of the recipe's `task` section with what they must be to read these very rows again; none of rows
            that are no data set of the hub.
    """

    name: str
    kind: TaskKind
    label_names: tuple[str, ...] | None
    splits: Mapping[str, Rows]
    metric_names: tuple[str, ...]
    primary: str
    paper_metric: str | None
    text_fields: int
    sha256: str
    source: str
    notes: tuple[str, ...] = ()
    pins: Mapping[str, str] = field(default_factory=dict)


def make_task_data(
    info: TaskInfo,
    splits: Mapping[str, Rows],
    *,
    label_names: tuple[str, ...] | None,
    source: str,
    notes: Sequence[str] = (),
    max_train: int | None = None,
    max_eval: int | None = None,
    pins: Mapping[str, str | None] = MappingProxyType({}),
) -> TaskData:
    """The task `info` with the first `max_train` training rows and the first `max_eval` rows of the other splits.

    A limit above the number of rows keeps them all; either way the notes tell it.
    """
    told, kept = list(notes), {}
    for name, rows in splits.items():
        limit = max_train if name == "train" else max_eval
        kept[name] = rows if limit is None else rows.head(limit)
        key = "max_train" if name == "train" else "max_eval"
        if limit is not None and limit > len(rows):
            told.append(f"{name}: {key} is {limit:,} and there are {len(rows):,} rows; all are used")
        elif limit is not None and limit < len(rows):
            told.append(f"{name}: the first {limit:,} of {len(rows):,} rows ({key})")
        if info.kind != "generation":
            told += _odd_labels(name, kept[name], label_names)
    told += _shared_rows(kept)
    return TaskData(
        name=info.name,
        kind=info.kind,
        label_names=label_names,
        splits=kept,
        metric_names=info.metrics,
        primary=info.primary,
        paper_metric=info.paper_metric,
        text_fields=1 if next(iter(kept.values())).second is None else 2,
        sha256=rows_sha256(kept),
        source=source,
        notes=tuple(told),
        pins={key: value for key, value in pins.items() if value is not None},
    )


def rows_sha256(splits: Mapping[str, Rows]) -> str:
    """SHA-256 over split names, texts and labels, in order: one JSON line a row."""
    digest = hashlib.sha256()
    for name in sorted(splits):
        rows = splits[name]
        digest.update(json.dumps([name, len(rows), rows.second is not None]).encode() + b"\n")
        for texts, label in zip(rows.texts(), rows.labels, strict=True):
            digest.update(json.dumps([*texts, label]).encode() + b"\n")
    return digest.hexdigest()


def _odd_labels(split: str, rows: Rows, label_names: tuple[str, ...] | None) -> list[str]:
    seen = set(rows.labels)
    if label_names is None:
        return [f"{split}: every row has the number {rows.labels[0]:g}"] if len(seen) == 1 and len(rows) > 1 else []
    absent = [name for number, name in enumerate(label_names) if number not in seen]
    if not absent:
        return []
    return [f"{split}: no row with the label {', '.join(map(repr, absent[:5]))}{', ...' if absent[5:] else ''}"]


def _shared_rows(splits: Mapping[str, Rows]) -> list[str]:
    """Tell where texts that are trained on are scored too."""
    if "train" not in splits:
        return []
    trained = set(splits["train"].texts())
    notes = []
    for name, rows in splits.items():
        shared = 0 if name == "train" else sum(texts in trained for texts in rows.texts())
        if shared:
            notes.append(f"{name}: {shared:,} of {len(rows):,} rows have the text of a training row")
    return notes

"""The rows of a task once they are read: splits, conversations, holding out a validation part, checksums and notes."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from kasatune.data.readers.answer_pairs import AnswerPair
from kasatune.data.readers.conversations import Chat, Unlearnt
from kasatune.data.tasks.task_info import TaskInfo, TaskKind
from kasatune.errors import DataError
from kasatune.wording import agree, counted

if TYPE_CHECKING:
    from kasatune.data.tasks.mixture_rows import PartRows

_HOLD_OUT_SEED = 0


class TaskSettings(Protocol):
    """What a task reads from a recipe: the `task` section, or any object with these attributes."""

    @property
    def name(self) -> str:
        """A name of `TASKS`."""
        ...

    @property
    def data(self) -> str | None:
        """Folder of a benchmark; None reads it from the hub."""
        ...

    @property
    def revision(self) -> str | None:
        """Commit, branch or tag of a benchmark that is read from the hub; None for its newest commit."""
        ...

    @property
    def train(self) -> str | None:
        """The user's training file."""
        ...

    @property
    def validation(self) -> str | float | None:
        """The user's validation file, or the share of the training rows to hold out for it, between 0 and 1."""
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
        """The column of the prompts."""
        ...

    @property
    def completion(self) -> str | None:
        """The column of the completions."""
        ...

    @property
    def max_train(self) -> int | None:
        """How many training rows to use, from the first; None uses all."""
        ...

    @property
    def max_eval(self) -> int | None:
        """The same for each other split."""
        ...


@dataclass(frozen=True)
class Rows:
    """Texts with their labels, in the order of their file.

    Attributes:
        first: the texts; complete prompts if text is generated.
        second: the second texts of pairs, or None if a row is one text.
        labels: label numbers (classification), numbers (regression), or completions of the prompts (generation).
    """

    first: list[str]
    second: list[str] | None
    labels: list[Any]

    def __len__(self) -> int:
        return len(self.first)

    def head(self, number: int) -> Self:
        """The first `number` rows, or all if there are fewer."""
        return self.pick(range(len(self))[:number])

    def pick(self, indices: Sequence[int]) -> Self:
        """The rows at `indices`."""
        first = [self.first[index] for index in indices]
        second = None if self.second is None else [self.second[index] for index in indices]
        return replace(self, first=first, second=second, labels=[self.labels[index] for index in indices])

    def sample(self, number: int) -> Self:
        """About `number` rows that stand for all of them: the first ones."""
        return self.head(number)

    def further_facts(self) -> list[Any]:
        """What decides training besides texts and labels, as plain data; empty for most rows."""
        return []

    def texts(self) -> list[tuple[str, ...]]:
        """The text or texts of each row."""
        if self.second is None:
            return [(first,) for first in self.first]
        return list(zip(self.first, self.second, strict=True))


@dataclass(frozen=True)
class ChatRows(Rows):
    """Conversations; `first` is the text before the last answer, `labels` that answer.

    Attributes:
        chats: the complete conversations.
    """

    chats: list[Chat] = field(default_factory=list[Chat])

    @classmethod
    def of(cls, chats: Sequence[Chat]) -> ChatRows:
        """Rows of the conversations `chats`."""
        return cls([_text_of_messages(chat[:-1]) for chat in chats], None, [chat[-1][1] for chat in chats], list(chats))

    def pick(self, indices: Sequence[int]) -> Self:
        """The rows at `indices`."""
        return replace(super().pick(indices), chats=[self.chats[index] for index in indices])

    def further_facts(self) -> list[Any]:
        """(row, message) of the answers that are not learnt."""
        return unlearnt_answers(self.chats)


def unlearnt_answers(chats: Sequence[Chat | None]) -> list[Any]:
    """[row, message] of each answer that is `Unlearnt`."""
    return [
        [row, number]
        for row, chat in enumerate(chats)
        for number, (_, text) in enumerate(chat or ())
        if isinstance(text, Unlearnt)
    ]


@dataclass(frozen=True)
class PairRows(Rows):
    """Pairs of answers; `first` is the text before them, `labels` the chosen and the rejected answer.

    Attributes:
        pairs: the pairs with the messages before them.
    """

    pairs: list[AnswerPair] = field(default_factory=list[AnswerPair])

    @classmethod
    def of(cls, pairs: Sequence[AnswerPair]) -> PairRows:
        """Rows of `pairs`."""
        texts = [_text_of_messages(pair.prompt) for pair in pairs]
        return cls(texts, None, [[pair.chosen, pair.rejected] for pair in pairs], list(pairs))

    def pick(self, indices: Sequence[int]) -> Self:
        """The rows at `indices`."""
        return replace(super().pick(indices), pairs=[self.pairs[index] for index in indices])


@dataclass(frozen=True)
class TaskData:
    """A task with its rows.

    Attributes:
        name: name of the task.
        kind: "classification", "regression" or "generation".
        label_names: the word of each label number; None if there are none.
        splits: "train", "validation", and further ones if the task has them ("validation_mismatched", "test").
        metric_names: the scores of the task.
        primary: score that selects the best epoch.
        paper_metric: score that the KaSA paper reports, or None.
        text_fields: 1, or 2 if a row is a pair of texts.
        sha256: of the rows in `splits`; equal rows have equal sums, wherever they were read from.
        source: where the rows were read from, with the revision of a data set of the hub.
        notes: what was left out, cut or is unusual, one sentence each, to be shown to the user.
        pins: keys of the recipe's `task` section with the values that read these very rows again; empty if no rows come
            from the hub.
        parts: the parts of a mixture; empty for other tasks.
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
    parts: tuple[PartRows, ...] = ()

    @property
    def part_tasks(self) -> dict[str, str]:
        """The task of each part of a mixture; empty for other tasks."""
        return {part.name: part.task for part in self.parts}

    def require_split(self, split: str) -> Rows:
        """The rows of a split.

        Raises:
            DataError: there is no such split, or it is empty.
        """
        if split not in self.splits:
            raise DataError(f"task {self.name} has no split {split!r}; its splits are {', '.join(self.splits)}")
        rows = self.splits[split]
        if not rows.first:
            raise DataError(f"the split {split!r} of task {self.name} is empty; at least one row is needed")
        return rows


def make_task_data(
    info: TaskInfo,
    settings: TaskSettings,
    splits: Mapping[str, Rows],
    *,
    source: str,
    label_names: tuple[str, ...] | None = None,
    notes: Sequence[str] = (),
    pins: Mapping[str, str | None] = MappingProxyType({}),
) -> TaskData:
    """Build the task data of `splits`, limited to the first `max_train` training and `max_eval` other rows.

    The notes say which rows a limit left out, or that it is above the number of rows, which keeps them all. They also
    name labels that do not occur and evaluation rows whose text is in the training rows.

    Args:
        info: row of the task.
        settings: gives the limits.
        splits: rows by split.
        source: where the rows were read from.
        label_names: labels in the order of their numbers, for a classification.
        notes: what the reader left out or found unusual.
        pins: see `TaskData`; keys with None are dropped.
    """
    all_notes, limited = list(notes), {}
    for name, rows in splits.items():
        key, limit = ("max_train", settings.max_train) if name == "train" else ("max_eval", settings.max_eval)
        limited[name] = rows if limit is None else rows.head(limit)
        if limit is not None and limit > len(rows):
            all_notes.append(f"{name}: {key} is {limit:,} and all {counted(len(rows), 'row')} are used")
        elif limit is not None and limit < len(rows):
            all_notes.append(f"{name}: the first {limit:,} of {counted(len(rows), 'row')} ({key})")
        if info.rows == "labelled":
            all_notes += _label_notes(name, limited[name], label_names)
    all_notes += _overlap_notes(limited)
    return TaskData(
        name=info.name,
        kind=info.kind,
        label_names=label_names,
        splits=limited,
        metric_names=info.metrics,
        primary=info.primary,
        paper_metric=info.paper_metric,
        text_fields=1 if next(iter(limited.values())).second is None else 2,
        sha256=rows_sha256(limited),
        source=source,
        notes=tuple(all_notes),
        pins={key: value for key, value in pins.items() if value is not None},
    )


def rows_sha256(splits: Mapping[str, Rows]) -> str:
    """SHA-256 over split names, texts and labels, in order: one JSON line a row; and over `Rows.further_facts`."""
    digest = hashlib.sha256()
    for name in sorted(splits):
        rows = splits[name]
        digest.update(json.dumps([name, len(rows), rows.second is not None]).encode() + b"\n")
        for texts, label in zip(rows.texts(), rows.labels, strict=True):
            digest.update(json.dumps([*texts, label]).encode() + b"\n")
        if further := rows.further_facts():
            digest.update(json.dumps(further).encode() + b"\n")
    return digest.hexdigest()


def require_own_files(info: TaskInfo, settings: TaskSettings) -> tuple[str, str | float]:
    """The values of `task.train` and `task.validation`.

    Raises:
        DataError: one of them is missing.
    """
    if settings.train is None:
        other = ", or hub:NAME:SPLIT" if info.hub_names else ""
        raise DataError(
            f"task.train: missing; {info.name} needs a file of your rows (.csv, .tsv, .json, .jsonl, .parquet){other}"
        )
    if settings.validation is None:
        raise DataError(
            "task.validation: missing; give a file, or the share of the training rows to hold out for it, such as 0.1"
        )
    return settings.train, settings.validation


def validation_share(validation: str | float) -> float | None:
    """The share of the training rows that `validation` gives, or None if it is a path.

    Raises:
        DataError: a number that is no share.
    """
    try:
        share = float(validation)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise DataError(f"task.validation: {validation} received; a share must lie between 0 and 1; or give a file")
    return share


SomeRows = TypeVar("SomeRows", bound=Rows)


def hold_out(rows: SomeRows, share: float, source: str | Path) -> tuple[SomeRows, SomeRows, str]:
    """Hold out `round(share * rows)` rows, drawn with a fixed seed.

    Returns:
        The training rows and the validation rows, each in the order of the file, and a note that says so.

    Raises:
        DataError: one of the two would be empty.
    """
    count = round(share * len(rows))
    if not 0 < count < len(rows):
        raise DataError(
            f"task.validation: {share:g} of the {counted(len(rows), 'row')} of {source} leaves a part empty; "
            "give a file"
        )
    held_out = set(random.Random(_HOLD_OUT_SEED).sample(range(len(rows)), count))
    train = rows.pick([index for index in range(len(rows)) if index not in held_out])
    note = f"validation: {count:,} of {counted(len(rows), 'row')} of {source}, drawn with a fixed seed"
    return train, rows.pick(sorted(held_out)), note


def _text_of_messages(messages: Chat) -> str:
    return messages[0][1] if len(messages) == 1 else "\n\n".join(f"{role}: {text}" for role, text in messages)


def _label_notes(split: str, rows: Rows, label_names: tuple[str, ...] | None) -> list[str]:
    labels = set(rows.labels)
    if label_names is None:
        return [f"{split}: every row has the number {rows.labels[0]:g}"] if len(labels) == 1 and len(rows) > 1 else []
    absent = [name for number, name in enumerate(label_names) if number not in labels]
    if not absent:
        return []
    return [f"{split}: no row with the label {', '.join(map(repr, absent[:5]))}{', ...' if absent[5:] else ''}"]


def _overlap_notes(splits: Mapping[str, Rows]) -> list[str]:
    """How many rows of each other split have a text of the training rows."""
    if "train" not in splits:
        return []
    trained = set(splits["train"].texts())
    notes = []
    for name, rows in splits.items():
        shared = 0 if name == "train" else sum(texts in trained for texts in rows.texts())
        if shared:
            notes.append(
                f"{name}: {shared:,} of {counted(len(rows), 'row')} {agree(shared, 'has', 'have')} the text of "
                "a training row"
            )
    return notes

"""Instructions and answers, one turn or several: the task `instruction`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kasatune.errors import DataError, WorkError
from kasatune.tasks.chats import Chat, chats_of_rows, columns_of_chats, read_chats
from kasatune.tasks.data import Rows, TaskData, TaskSettings, make_task_data
from kasatune.tasks.own import parted, validation_share
from kasatune.tasks.table import TaskInfo

HUB = "hub:"


@dataclass(frozen=True)
class ChatRows(Rows):
    """Conversations; `first` is all that stands before the last answer, `labels` that answer.

    Attributes:
        chats: whole.
    """

    chats: list[Chat] = field(default_factory=list)

    def head(self, number: int) -> ChatRows:
        """The first `number` rows, or all where there are fewer."""
        return chat_rows(self.chats[:number])

    def pick(self, indices: Sequence[int]) -> ChatRows:
        """The rows at `indices`."""
        return chat_rows([self.chats[index] for index in indices])


def chat_rows(chats: list[Chat]) -> ChatRows:
    """Conversations as rows."""
    return ChatRows([_before(chat) for chat in chats], None, [chat[-1][1] for chat in chats], chats)  # type: ignore[arg-type]


def load_instruction(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """The rows of your files, or of a data set on the hub as "hub:NAME:SPLIT"; see `read_chats` for their form.

    A number as `validation` keeps that share of the training rows, as `load_own` does.

    Raises:
        DataError: rows are missing, unreadable or no conversations.
        WorkError: the hub cannot be reached.
    """
    if settings.train is None or settings.validation is None:
        key = "train" if settings.train is None else "validation"
        raise DataError(f"task.{key}: missing; instruction needs a file of your rows, or hub:NAME:SPLIT")
    share = validation_share(settings.validation)
    train, notes = read_instructions(settings.train)
    if share is None:
        validation, more = read_instructions(str(settings.validation))
        source, notes = f"{settings.train}, {settings.validation}", notes + more
    else:
        whole, source = len(train), settings.train
        train, validation = parted(train, share, Path(settings.train))
        notes.append(f"validation: {len(validation):,} of {whole:,} rows of {source}, drawn with a fixed seed")
    return make_task_data(
        info,
        {"train": train, "validation": validation},
        label_names=None,
        source=source,
        notes=notes,
        max_train=settings.max_train,
        max_eval=settings.max_eval,
    )


def read_instructions(source: str) -> tuple[ChatRows, list[str]]:
    """The rows of a file or of "hub:NAME:SPLIT", and what was left out in words.

    Raises:
        DataError: as `load_instruction` has it.
        WorkError: the same.
    """
    chats, notes = _from_hub(source) if source.startswith(HUB) else read_chats(Path(source))
    if not chats:
        raise DataError(f"{source}: holds no rows")
    return chat_rows(chats), notes


def _before(chat: Chat) -> str:
    asked = chat[:-1]
    return asked[0][1] if len(asked) == 1 else "\n\n".join(f"{role}: {text}" for role, text in asked)


def _from_hub(source: str) -> tuple[list[Chat], list[str]]:
    import datasets

    name, _, split = source.removeprefix(HUB).rpartition(":")
    if not name or not split:
        raise DataError(f"{source!r} names no data set and split; write hub:NAME:SPLIT")
    try:
        table: Any = datasets.load_dataset(name, split=split)
    except Exception as fault:  # datasets and the hub client raise dozens of unrelated types
        reason = (str(fault).splitlines() or [""])[0]
        raise WorkError(
            f"{name} could not be had from the hub, split {split!r}: {type(fault).__name__}: {reason};"
            " check name, split and network, or give a file"
        ) from fault
    columns = columns_of_chats(table.column_names, source)
    return chats_of_rows({column: list(table[column]) for column in columns}, source)

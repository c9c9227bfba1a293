"""Instructions and answers, one turn or several: the task `instruction`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kasatune.data.readers.conversations import Chat, chats_of_rows, columns_of_chats, read_chats
from kasatune.data.readers.hub import HUB, parse_hub_name, read_hub
from kasatune.data.tasks.dataset import Rows, TaskData, TaskSettings, make_task_data
from kasatune.data.tasks.labelled_text import parted, validation_share
from kasatune.data.tasks.table import TaskInfo
from kasatune.errors import DataError


@dataclass(frozen=True)
class ChatRows(Rows):
    """Conversations; `first` is all that stands before the last answer, `labels` that answer.

    Attributes:
        chats: whole.
    """

    chats: list[Chat] = field(default_factory=list)

    def pick(self, indices: Sequence[int]) -> ChatRows:
        """The rows at `indices`."""
        return chat_rows([self.chats[index] for index in indices])


def chat_rows(chats: list[Chat]) -> ChatRows:
    """Conversations as rows."""
    return ChatRows([_before(chat) for chat in chats], None, [chat[-1][1] for chat in chats], chats)  # type: ignore[arg-type]


def load_instruction(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """The rows of your files, or of a data set on the hub as "hub:NAME:SPLIT" or "hub:NAME@REVISION:SPLIT".

    See `read_chats` for their form.

    A number as `validation` keeps that share of the training rows, as `load_own` does.

    Raises:
        DataError: rows are missing, unreadable or no conversations.
        WorkError: the hub cannot be reached.
    """
    if settings.train is None or settings.validation is None:
        key = "train" if settings.train is None else "validation"
        raise DataError(f"task.{key}: missing; instruction needs a file of your rows, or hub:NAME:SPLIT")
    share = validation_share(settings.validation)
    train, notes, source = read_instructions(settings.train)
    pins = {"train": source} if source.startswith(HUB) else {}
    if share is None:
        validation, more, other = read_instructions(str(settings.validation))
        pins |= {"validation": other} if other.startswith(HUB) else {}
        source, notes = f"{source}, {other}", notes + more
    else:
        whole = len(train)
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
        pins=pins,
    )


def read_instructions(source: str) -> tuple[ChatRows, list[str], str]:
    """The rows of a file or of "hub:NAME:SPLIT", what was left out in words, and `source` at the commit that was read.

    Raises:
        DataError: as `load_instruction` has it.
        WorkError: the same.
    """
    if source.startswith(HUB):
        chats, notes, source = _from_hub(source)
    else:
        chats, notes = read_chats(Path(source))
    if not chats:
        raise DataError(f"{source}: holds no rows")
    return chat_rows(chats), notes, source


def _before(chat: Chat) -> str:
    asked = chat[:-1]
    return asked[0][1] if len(asked) == 1 else "\n\n".join(f"{role}: {text}" for role, text in asked)


def _from_hub(source: str) -> tuple[list[Chat], list[str], str]:
    asked = parse_hub_name(source)
    found = read_hub(asked.name, revision=asked.revision, instead="give a file")
    if asked.split not in found.tables:
        raise DataError(f"{source}: no such split; {found.source} has {', '.join(found.tables)}")
    table = found.tables[asked.split]
    columns = columns_of_chats(table.column_names, source)
    chats, notes = chats_of_rows({column: list(table[column]) for column in columns}, source)
    return chats, [*found.notes, *notes], str(asked.at(found.commit or asked.revision))

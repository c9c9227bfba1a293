"""The task `instruction`: Alpaca rows or conversations of one or several turns, from files or the hub."""

from __future__ import annotations

from pathlib import Path

from kasatune.data.readers.conversations import Chat, chats_of_rows, columns_of_chats, form_of_chats, read_chats
from kasatune.data.readers.hub import HUB
from kasatune.data.tasks.dataset import ChatRows, TaskData, TaskSettings, make_task_data
from kasatune.data.tasks.files_or_hub import load_splits, read_hub_columns
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.errors import DataError


def load(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """Read the user's files, or data sets of the hub given as "hub:NAME:SPLIT" or "hub:NAME@REVISION:SPLIT".

    `read_chats` documents their form.

    Raises:
        DataError: rows are missing, unreadable or not conversations.
        WorkError: the hub cannot be reached.
    """
    return load_splits(info, settings, _read)


def load_evaluation(info: TaskInfo, settings: TaskSettings, data: str, label_names: tuple[str, ...] | None) -> TaskData:
    """Read a file, or a data set of the hub given as for `load`.

    Raises:
        DataError: rows are missing, unreadable or not conversations.
        WorkError: the hub cannot be reached.
    """
    rows, notes, source = _read(data)
    return make_task_data(info, settings, {"validation": rows}, source=source, notes=notes)


def _read(source: str) -> tuple[ChatRows, list[str], str]:
    """The rows, notes about rows that were left out, and `source` at the commit that was read."""
    if source.startswith(HUB):
        chats, notes, source = _read_hub(source)
    else:
        chats, notes = read_chats(Path(source))
    if not chats:
        raise DataError(f"{source}: holds no rows")
    return ChatRows.of(chats), notes, source


def _read_hub(source: str) -> tuple[list[Chat], list[str], str]:
    hub = read_hub_columns(source, columns_of_chats)
    chats, notes = chats_of_rows(hub.columns, source)
    return chats, [*hub.notes, *form_of_chats(hub.names, list(hub.columns), source), *notes], hub.source

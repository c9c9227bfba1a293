"""Rows of the user's own files or of data sets of the hub: the splits of a task that takes both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kasatune.data.readers.hub import HUB, parse_hub_name, read_hub
from kasatune.data.tasks.dataset import (
    Rows,
    TaskData,
    TaskSettings,
    hold_out,
    make_task_data,
    require_own_files,
    validation_share,
)
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.errors import DataError

Read = Callable[[str], tuple[Rows, list[str], str]]
"""Gives the rows of a file or of "hub:NAME:SPLIT", notes, and the source at the commit that was read."""


class HubColumns(NamedTuple):
    """Columns of a split of a data set of the hub.

    Attributes:
        columns: the values by column.
        names: the names of all columns of the split.
        notes: remarks of the reader.
        source: "hub:NAME@COMMIT:SPLIT".
    """

    columns: dict[str, list[Any]]
    names: list[str]
    notes: list[str]
    source: str


def load_splits(info: TaskInfo, settings: TaskSettings, read: Read) -> TaskData:
    """The splits "train" and "validation" of `task.train` and `task.validation`, a source or a share to hold out.

    Raises:
        DataError: rows are missing, or `read` rejects them.
        WorkError: the hub cannot be reached.
    """
    file, validation_given = require_own_files(info, settings)
    share = validation_share(validation_given)
    rows, notes, source = read(file)
    pins = {"train": source} if source.startswith(HUB) else {}
    if share is None:
        train = rows
        validation, more_notes, validation_source = read(str(validation_given))
        pins |= {"validation": validation_source} if validation_source.startswith(HUB) else {}
        source, notes = f"{source}, {validation_source}", notes + more_notes
    else:
        train, validation, note = hold_out(rows, share, source)
        notes.append(note)
    splits = {"train": train, "validation": validation}
    return make_task_data(info, settings, splits, source=source, notes=notes, pins=pins)


def read_hub_columns(source: str, choose: Callable[[Sequence[str], str], Sequence[str]]) -> HubColumns:
    """Read columns of a split of the hub.

    Args:
        source: "hub:NAME:SPLIT" or "hub:NAME@REVISION:SPLIT".
        choose: picks the columns, given the names of all and the source.

    Raises:
        DataError: there is no such split, or `choose` rejects the columns.
        WorkError: the hub cannot be reached.
    """
    hub_name = parse_hub_name(source)
    hub_data = read_hub(hub_name.name, revision=hub_name.revision, instead="give a file")
    if hub_name.split not in hub_data.tables:
        raise DataError(f"{source}: no such split; {hub_data.source} has {', '.join(hub_data.tables)}")
    table = hub_data.tables[hub_name.split]
    chosen = choose(table.column_names, source)
    return HubColumns(
        {column: list(table[column]) for column in chosen},
        list(table.column_names),
        list(hub_data.notes),
        str(hub_name.at(hub_data.commit or hub_name.revision)),
    )

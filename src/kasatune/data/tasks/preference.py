"""The tasks `preference` and `reward`: pairs of a chosen and a rejected answer, from files or the hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kasatune.data.readers.answer_pairs import AnswerPair, columns_of_pairs, form_of_pairs, pairs_of_rows, read_pairs
from kasatune.data.readers.hub import HUB, parse_hub_name, read_hub
from kasatune.data.tasks.dataset import (
    PairRows,
    TaskData,
    TaskSettings,
    hold_out,
    make_task_data,
    require_own_files,
    validation_share,
)
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.errors import DataError


def load(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """Read the user's files, or data sets of the hub given as "hub:NAME:SPLIT" or "hub:NAME@REVISION:SPLIT".

    `read_pairs` documents their form.

    Raises:
        DataError: rows are missing, unreadable or no pairs of answers.
        WorkError: the hub cannot be reached.
    """
    file, validation_given = require_own_files(info, settings)
    share = validation_share(validation_given)
    rows, notes, source = _read(file)
    pins = {"train": source} if source.startswith(HUB) else {}
    if share is None:
        train = rows
        validation, more_notes, validation_source = _read(str(validation_given))
        pins |= {"validation": validation_source} if validation_source.startswith(HUB) else {}
        source, notes = f"{source}, {validation_source}", notes + more_notes
    else:
        train, validation, note = hold_out(rows, share, source)
        notes.append(note)
    splits = {"train": train, "validation": validation}
    return _with_fields(make_task_data(info, settings, splits, source=source, notes=notes, pins=pins))


def load_evaluation(info: TaskInfo, settings: TaskSettings, data: str, label_names: tuple[str, ...] | None) -> TaskData:
    """Read a file, or a data set of the hub given as for `load`.

    Raises:
        DataError: rows are missing, unreadable or no pairs of answers.
        WorkError: the hub cannot be reached.
    """
    rows, notes, source = _read(data)
    return _with_fields(make_task_data(info, settings, {"validation": rows}, source=source, notes=notes))


def _with_fields(data: TaskData) -> TaskData:
    """A reward is predicted for two texts, a prompt and an answer."""
    return replace(data, text_fields=2) if data.kind == "regression" else data


def _read(source: str) -> tuple[PairRows, list[str], str]:
    """The rows, notes, and `source` at the commit that was read."""
    if source.startswith(HUB):
        pairs, notes, source = _read_hub(source)
    else:
        pairs, notes = read_pairs(Path(source))
    if not pairs:
        raise DataError(f"{source}: holds no pairs of different answers")
    return PairRows.of(pairs), notes, source


def _read_hub(source: str) -> tuple[list[AnswerPair], list[str], str]:
    hub_name = parse_hub_name(source)
    hub_data = read_hub(hub_name.name, revision=hub_name.revision, instead="give a file")
    if hub_name.split not in hub_data.tables:
        raise DataError(f"{source}: no such split; {hub_data.source} has {', '.join(hub_data.tables)}")
    table = hub_data.tables[hub_name.split]
    columns = columns_of_pairs(table.column_names, source)
    pairs, notes = pairs_of_rows({column: list(table[column]) for column in columns}, source)
    notes = [*hub_data.notes, form_of_pairs(table.column_names, columns, source), *notes]
    return pairs, notes, str(hub_name.at(hub_data.commit or hub_name.revision))

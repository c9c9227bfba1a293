"""The tasks `preference` and `reward`: pairs of a chosen and a rejected answer, from files or the hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kasatune.data.readers.answer_pairs import AnswerPair, columns_of_pairs, form_of_pairs, pairs_of_rows, read_pairs
from kasatune.data.readers.hub import HUB
from kasatune.data.tasks.dataset import PairRows, TaskData, TaskSettings, make_task_data
from kasatune.data.tasks.files_or_hub import load_splits, read_hub_columns
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.errors import DataError


def load(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """Read the user's files, or data sets of the hub given as "hub:NAME:SPLIT" or "hub:NAME@REVISION:SPLIT".

    `read_pairs` documents their form.

    Raises:
        DataError: rows are missing, unreadable or no pairs of answers.
        WorkError: the hub cannot be reached.
    """
    return _with_fields(load_splits(info, settings, _read))


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
    hub = read_hub_columns(source, columns_of_pairs)
    pairs, notes = pairs_of_rows(hub.columns, source)
    return pairs, [*hub.notes, form_of_pairs(hub.names, list(hub.columns), source), *notes], hub.source

"""The task `text-generation`: prompts and completions from the user's files."""

from __future__ import annotations

from pathlib import Path

from kasatune.data.readers.faults import Faults, show
from kasatune.data.readers.tables import read_table
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


def load(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """Read the prompts, used as they are, and completions of the user's files.

    Rows with the same prompt are one input with several references.

    Raises:
        DataError: a file is unreadable (see `read_table`), or a prompt or completion is empty or not text.
    """
    file, validation_given = require_own_files(info, settings)
    share = validation_share(validation_given)
    rows = _read(Path(file), settings)
    if share is None:
        train, validation, notes = rows, _read(Path(str(validation_given)), settings), []
        source = f"{file}, {validation_given}"
    else:
        train, validation, note = hold_out(rows, share, file)
        notes, source = [note], file
    return make_task_data(info, settings, {"train": train, "validation": validation}, source=source, notes=notes)


def load_evaluation(info: TaskInfo, settings: TaskSettings, data: str, label_names: tuple[str, ...] | None) -> TaskData:
    """Read the prompts and completions of one file.

    Raises:
        DataError: as for `load`.
    """
    return make_task_data(info, settings, {"validation": _read(Path(data), settings)}, source=data)


def _read(path: Path, settings: TaskSettings) -> Rows:
    if settings.prompt is None or settings.completion is None:
        key = "prompt" if settings.prompt is None else "completion"
        raise DataError(f"task.{key}: missing; name the column of your files that holds it")
    table = read_table(path, [settings.prompt, settings.completion])
    faults = Faults(str(path))
    for column in (settings.prompt, settings.completion):
        for index, value in enumerate(table.columns[column]):
            if not isinstance(value, str) or not value.strip():
                what = "no text" if value is None or isinstance(value, str) else f"{show(value)} is not text"
                faults.add(f"{table.place(index, column)}: {what}")
    faults.raise_any()
    return Rows(table.columns[settings.prompt], None, table.columns[settings.completion])

"""Your own prompts and completions: the task `text-generation`."""

from __future__ import annotations

from pathlib import Path

from kasatune.data.readers.faults import Faults, show
from kasatune.data.readers.tables import read_table
from kasatune.data.tasks.dataset import Rows, TaskData, TaskSettings, make_task_data
from kasatune.data.tasks.labelled_text import parted, validation_share
from kasatune.data.tasks.table import TaskInfo
from kasatune.errors import DataError


def load_prompted(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """The rows of your files, prompts as they stand there; rows of one prompt are one input with several references.

    A number as `validation` keeps that share of the training rows, as `load_own` does.

    Raises:
        DataError: a file is unreadable (see `read_table`), or a prompt or completion is empty or no text.
    """
    if settings.train is None or settings.validation is None:
        key = "train" if settings.train is None else "validation"
        raise DataError(f"task.{key}: missing; text-generation needs a file of your rows")
    path, share = Path(settings.train), validation_share(settings.validation)
    train, notes = read_prompted(path, settings), []
    if share is None:
        other = Path(str(settings.validation))
        validation, source = read_prompted(other, settings), f"{path}, {other}"
    else:
        whole = len(train)
        train, validation = parted(train, share, path)
        notes = [f"validation: {len(validation):,} of {whole:,} rows of {path}, drawn with a fixed seed"]
        source = str(path)
    return make_task_data(
        info,
        {"train": train, "validation": validation},
        label_names=None,
        source=source,
        notes=notes,
        max_train=settings.max_train,
        max_eval=settings.max_eval,
    )


def read_prompted(path: Path, settings: TaskSettings) -> Rows:
    """The prompts and completions of one file.

    Raises:
        DataError: as `load_prompted` has it.
    """
    if settings.prompt is None or settings.completion is None:
        key = "prompt" if settings.prompt is None else "completion"
        raise DataError(f"task.{key}: missing; name the column of your files that holds it")
    table = read_table(path, [settings.prompt, settings.completion])
    faults = Faults(str(path))
    for column in (settings.prompt, settings.completion):
        for index, value in enumerate(table.columns[column]):
            if not isinstance(value, str) or not value.strip():
                what = "no text" if value in (None, "") or isinstance(value, str) else f"{show(value)} is no text"
                faults.add(f"{table.place(index, column)}: {what}")
    faults.raise_any()
    return Rows(table.columns[settings.prompt], None, table.columns[settings.completion])

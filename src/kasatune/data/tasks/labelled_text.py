"""The tasks `classification` and `regression`: text or pairs of texts with a label or number, from the user's files."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kasatune.data.readers.faults import SHOWN, Faults, nearest, show
from kasatune.data.readers.tables import Table, read_table
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
from kasatune.wording import counted

MAX_LABELS = 1000

_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,100}")


def load(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """Read the rows of the user's files.

    Labels are words or numbers. Label numbers follow the sorted names: by value if all are whole numbers, otherwise
    alphabetically. Spaces around a label are ignored. A number as `validation` holds out that share of the training
    rows: `round(share * rows)` of them, drawn with a fixed seed, both parts in the order of the file.

    Raises:
        DataError: a file is unreadable (see `read_table`); a text is empty or not text; a label or number is missing or
            not a number; there is only one label, or more than 1,000; a validation label does not occur in training.
    """
    file, validation_given = require_own_files(info, settings)
    path, share = Path(file), validation_share(validation_given)
    table = _read(path, settings)
    names = _label_names(table, settings) if info.kind == "classification" else None
    rows = _rows(table, settings, names, trained_on=None)
    if names is None and len(set(rows.labels)) == 1:
        raise DataError(
            f"{path}, column {settings.label!r}: every row has the number {rows.labels[0]:g}; nothing to learn"
        )
    if share is None:
        train, notes = rows, []
        validation = _rows(_read(Path(str(validation_given)), settings), settings, names, trained_on=path)
        source = f"{path}, {validation_given}"
    else:
        train, validation, note = hold_out(rows, share, path)
        notes, source = [note], str(path)
    splits = {"train": train, "validation": validation}
    return make_task_data(info, settings, splits, label_names=names, source=source, notes=notes)


def load_evaluation(info: TaskInfo, settings: TaskSettings, data: str, label_names: tuple[str, ...] | None) -> TaskData:
    """Read the rows of one file, with the labels that a model was trained on.

    Raises:
        DataError: as for `load`.
    """
    trained_on = Path(settings.train or "the training data")
    rows = _rows(_read(Path(data), settings), settings, label_names, trained_on=trained_on)
    return make_task_data(info, settings, {"validation": rows}, label_names=label_names, source=data)


def _text_columns(settings: TaskSettings) -> list[str]:
    if settings.text is None or settings.label is None:
        key = "text" if settings.text is None else "label"
        raise DataError(f"task.{key}: missing; name the column of your files that holds it")
    columns = [settings.text] if isinstance(settings.text, str) else list(settings.text)
    if not 1 <= len(columns) <= 2:
        raise DataError(f"task.text: {columns!r} received; one or two columns are expected")
    if len({*columns, settings.label}) <= len(columns):
        raise DataError(
            f"task.text, task.label: {columns!r} and {settings.label!r} received; they must be different columns"
        )
    return columns


def _read(path: Path, settings: TaskSettings) -> Table:
    columns = _text_columns(settings)
    return read_table(path, [*columns, str(settings.label)])


def _label_name(value: Any) -> str:
    """The name of a label: a whole number without decimal point, or the word stripped of spaces; "" if missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() if isinstance(value, (str, int, float)) else ""


def _label_names(table: Table, settings: TaskSettings) -> tuple[str, ...]:
    label = str(settings.label)
    names = {name for name in map(_label_name, table.columns[label]) if name}
    place = f"{table.path}, column {label!r}"
    if len(names) == 1:
        raise DataError(f"{place}: every row has the label {next(iter(names))!r}; at least two labels are needed")
    if len(names) > MAX_LABELS:
        raise DataError(
            f"{place}: {len(names):,} different labels in {counted(len(table), 'row')}; at most {MAX_LABELS:,} "
            "are allowed;"
            " is this the label column, or is the task a regression?"
        )
    if all(_WHOLE_NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _rows(table: Table, settings: TaskSettings, names: tuple[str, ...] | None, trained_on: Path | None) -> Rows:
    faults = Faults(str(table.path))
    texts = [_texts(table, column, faults) for column in _text_columns(settings)]
    label = str(settings.label)
    labels: list[Any] = (
        _numbers(table, label, faults) if names is None else _label_numbers(table, label, names, trained_on, faults)
    )
    faults.raise_any()
    return Rows(texts[0], texts[1] if len(texts) == 2 else None, labels)


def _texts(table: Table, column: str, faults: Faults) -> list[str]:
    for index, value in enumerate(table.columns[column]):
        if not isinstance(value, str):
            what = "no text" if value is None else f"{show(value)} is not text"
            faults.add(f"{table.place(index, column)}: {what}")
        elif not value.strip():
            faults.add(f"{table.place(index, column)}: the text is empty")
        elif "\0" in value or (not value.isascii() and _has_surrogate(value)):
            faults.add(
                f"{table.place(index, column)}: a NUL character or half a surrogate pair, which text cannot contain"
            )
    return table.columns[column]


def _has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _label_numbers(
    table: Table, column: str, names: Sequence[str], trained_on: Path | None, faults: Faults
) -> list[int]:
    numbers = {name: number for number, name in enumerate(names)}
    result = []
    for index, value in enumerate(table.columns[column]):
        name = _label_name(value)
        if name in numbers:
            result.append(numbers[name])
        elif name:
            hint = nearest(name, names) if faults.count < SHOWN else ""  # slow, and only the first faults are shown
            known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            place = table.place(index, column)
            faults.add(f"{place}: the label {show(name)} does not occur in {trained_on}{hint} (labels: {known})")
        else:
            what = f"{show(value)} is not a label" if value not in (None, "") else "the label is missing"
            faults.add(f"{table.place(index, column)}: {what}")
    return result


def _numbers(table: Table, column: str, faults: Faults) -> list[float]:
    result = []
    for index, value in enumerate(table.columns[column]):
        number = _number(value)
        if number is not None:
            result.append(number)
        elif value is None or value == "":
            faults.add(f"{table.place(index, column)}: the number is missing")
        else:
            faults.add(
                f"{table.place(index, column)}: {show(value)} is not a finite number (a decimal point, no comma)"
            )
    return result


def _number(value: Any) -> float | None:
    """The value as a finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None

"""Your own labelled text: the tasks `classification` and `regression`."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kasatune.data.readers.faults import SHOWN, Faults, nearest, show
from kasatune.data.readers.tables import Table, read_table
from kasatune.data.tasks.dataset import Rows, TaskData, TaskSettings, make_task_data
from kasatune.data.tasks.table import TaskInfo
from kasatune.errors import DataError

MAX_LABELS = 1000

_SPLIT_SEED = 0
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,100}")


def load_own(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """The rows of your files.

    Labels are words or numbers. The label numbers follow the sorted names: by value where all are whole numbers, else
    by their letters. Spaces around a label do not count. A number as `validation` keeps that share of the training
    rows for validation: `round(share * rows)` of them, drawn with a fixed seed, both parts in the order of the file.

    Raises:
        DataError: a file is unreadable (see `read_table`); a text is empty or no text; a label or number is missing or
            no number; there is one label only, or more than 1,000; a validation label does not occur in training.
    """
    if settings.train is None:
        raise DataError(
            f"task.train: missing; {info.name} needs a file of your rows (.csv, .tsv, .json, .jsonl, .parquet)"
        )
    if settings.validation is None:
        raise DataError(
            "task.validation: missing; give a file, or the share of the training rows to keep for it, as 0.1"
        )
    path, share = Path(settings.train), validation_share(settings.validation)
    table = _read(path, settings)
    names = _label_names(table, settings) if info.kind == "classification" else None
    train = _rows(table, settings, names, trained_on=None)
    if names is None and len(set(train.labels)) == 1:
        raise DataError(
            f"{path}, column {settings.label!r}: every row has the number {train.labels[0]:g}; nothing to learn"
        )
    if share is None:
        other = Path(str(settings.validation))
        validation, notes = _rows(_read(other, settings), settings, names, trained_on=path), []
        source = f"{path}, {other}"
    else:
        train, validation = parted(train, share, path)
        notes = [f"validation: {len(validation):,} of {len(table):,} rows of {path}, drawn with a fixed seed"]
        source = str(path)
    return make_task_data(
        info,
        {"train": train, "validation": validation},
        label_names=names,
        source=source,
        notes=notes,
        max_train=settings.max_train,
        max_eval=settings.max_eval,
    )


def read_own_rows(path: Path, settings: TaskSettings, label_names: tuple[str, ...] | None) -> Rows:
    """The rows of one more file, with the labels that a model was trained on.

    Raises:
        DataError: as `load_own` has it.
    """
    return _rows(_read(path, settings), settings, label_names, trained_on=Path(settings.train or "the training data"))


def validation_share(validation: str | float) -> float | None:
    """The share that `validation` is, or None where it is a path.

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


def parted(rows: Rows, share: float, path: Path) -> tuple[Rows, Rows]:
    """`rows` without `round(share * rows)` of them drawn with a fixed seed, and those, each in the order of the file.

    Raises:
        DataError: one of the two would be empty.
    """
    count = round(share * len(rows))
    if not 0 < count < len(rows):
        raise DataError(
            f"task.validation: {share:g} of the {len(rows)} rows of {path} leaves a part empty; give a file"
        )
    held = set(random.Random(_SPLIT_SEED).sample(range(len(rows)), count))
    return rows.pick([i for i in range(len(rows)) if i not in held]), rows.pick(sorted(held))


def _text_columns(settings: TaskSettings) -> list[str]:
    if settings.text is None or settings.label is None:
        key = "text" if settings.text is None else "label"
        raise DataError(f"task.{key}: missing; name the column of your files that holds it")
    columns = [settings.text] if isinstance(settings.text, str) else list(settings.text)
    if not 1 <= len(columns) <= 2:
        raise DataError(f"task.text: {columns!r} received; one or two columns are expected")
    if len({*columns, settings.label}) <= len(columns):
        raise DataError(
            f"task.text, task.label: {columns!r} and {settings.label!r} received; each must be another column"
        )
    return columns


def _read(path: Path, settings: TaskSettings) -> Table:
    columns = _text_columns(settings)
    return read_table(path, [*columns, str(settings.label)])


def _label_name(value: Any) -> str:
    """The name of a label: a whole number without a point, or the word without the spaces around it; "" for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() if isinstance(value, (str, int, float)) else ""


def _label_names(table: Table, settings: TaskSettings) -> tuple[str, ...]:
    label = str(settings.label)
    found = {name for name in map(_label_name, table.columns[label]) if name}
    place = f"{table.path}, column {label!r}"
    if len(found) == 1:
        raise DataError(f"{place}: every row has the label {next(iter(found))!r}; two labels at least are needed")
    if len(found) > MAX_LABELS:
        raise DataError(
            f"{place}: {len(found):,} different labels in {len(table):,} rows; at most {MAX_LABELS:,} are allowed;"
            " is this the column of the label, or is the task a regression?"
        )
    if all(_WHOLE_NUMBER.fullmatch(name) for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


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
            what = "no text" if value is None else f"{show(value)} is no text"
            faults.add(f"{table.place(index, column)}: {what}")
        elif not value.strip():
            faults.add(f"{table.place(index, column)}: the text is empty")
        elif "\0" in value or (not value.isascii() and _has_surrogate(value)):
            faults.add(f"{table.place(index, column)}: a NUL or half a surrogate pair, which no text holds")
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
            hint = nearest(name, names) if faults.count < SHOWN else ""  # it is slow, and no more are shown
            known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            place = table.place(index, column)
            faults.add(f"{place}: the label {show(name)} does not occur in {trained_on}{hint} (labels: {known})")
        else:
            what = f"{show(value)} is no label" if value not in (None, "") else "the label is missing"
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
    """A finite number, or None for what is none."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None

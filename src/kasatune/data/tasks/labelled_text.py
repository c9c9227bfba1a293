"""The tasks `classification` and `regression`: text or pairs of texts with a label or number, from the user's files."""

from __future__ import annotations

import math
import re
import unicodedata
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

_DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,99})\.[0-9]{1,100}")
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,100}")


def load(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """Read the rows of the user's files.

    Labels are words or numbers. Label numbers follow the sorted names: by value if all are whole numbers, otherwise
    alphabetically; of a ClassLabel of `datasets` in a Parquet file, names and order are kept. Spaces around a label are
    ignored. 1 and 1.0 are one class, and so are the Unicode forms of a word.

    A number as `validation` holds out that share of the training rows: `round(share * rows)` of them, drawn with a
    fixed seed, both parts in the order of the file.

    Raises:
        DataError: a file is unreadable (see `read_table`); a text is empty or not text; a label or number is missing or
            not a number; there is only one label, or more than 1,000; a validation label does not occur in training.
    """
    file, validation_given = require_own_files(info, settings)
    path, share = Path(file), validation_share(validation_given)
    table = _read(path, settings)
    names, form_notes = _label_names(table, settings) if info.kind == "classification" else (None, [])
    rows = _rows(table, settings, names, trained_on=None)
    if names is None and len(set(rows.labels)) == 1:
        raise DataError(
            f"{path}, column {settings.label!r}: every row has the number {rows.labels[0]:g}; nothing to learn"
        )
    if share is None:
        train, notes = rows, form_notes
        validation = _rows(_read(Path(str(validation_given)), settings), settings, names, trained_on=path)
        source = f"{path}, {validation_given}"
    else:
        train, validation, note = hold_out(rows, share, path)
        notes, source = [*form_notes, note], str(path)
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


def _labels(table: Table, column: str) -> list[str]:
    """The name of the label of each row; "" if it is missing."""
    known = table.class_names.get(column)
    if known is None:
        return [_label_name(value) for value in table.columns[column]]
    numbered = dict(enumerate(known))
    return [
        _label_name(numbered.get(value, value) if type(value) is int and value >= 0 else None if value == -1 else value)
        for value in table.columns[column]
    ]


def _class_key(name: str) -> str:
    """A key that is equal for the spellings of one class: Unicode forms of a word (NFC), and 1, 1.0 and 1.00."""
    name = unicodedata.normalize("NFC", name)
    if not _DECIMAL.fullmatch(name):
        return name
    short = name.rstrip("0").rstrip(".")
    return "0" if short == "-0" else short


def _label_names(table: Table, settings: TaskSettings) -> tuple[tuple[str, ...], list[str]]:
    """The names of the labels in the order of their numbers, and notes about names that are spelt in several ways."""
    label = str(settings.label)
    spellings: dict[str, set[str]] = {}
    for name in {name for name in _labels(table, label) if name}:
        spellings.setdefault(_class_key(name), set()).add(name)
    # One spelling is kept as it is written, of several the shortest and normalized one.
    names = {min(forms, key=lambda form: (form != _class_key(form), len(form), form)) for forms in spellings.values()}
    place = f"{table.path}, column {label!r}"
    notes = [
        f"{place}: {' and '.join(ascii(form) for form in sorted(forms))} are one label"
        for forms in spellings.values()
        if len(forms) > 1
    ]
    if len(names) == 1:
        raise DataError(f"{place}: every row has the label {next(iter(names))!r}; at least two labels are needed")
    if len(names) > MAX_LABELS:
        raise DataError(
            f"{place}: {len(names):,} different labels in {counted(len(table), 'row')}; at most {MAX_LABELS:,} are "
            "allowed; is this the label column, or is the task a regression?"
        )
    stated = table.class_names.get(label)
    if stated is not None and names <= set(stated):
        return tuple(dict.fromkeys(stated)), notes
    if all(_WHOLE_NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name))), notes
    return tuple(sorted(names)), notes


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
    numbers = {_class_key(name): number for number, name in enumerate(names)}
    numbers |= {name: number for number, name in enumerate(names)}
    result = []
    for index, (value, label) in enumerate(zip(table.columns[column], _labels(table, column), strict=True)):
        # A model may have been trained on the numbers of a ClassLabel.
        name = next((form for form in (label, _class_key(label), str(value)) if label and form in numbers), label)
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

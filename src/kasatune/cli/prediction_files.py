"""Files of `kasatune predict`: inputs from standard input, text or tables, and predictions as CSV or JSON Lines."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kasatune.data.readers.tables import column_names, read_table
from kasatune.data.readers.text_files import read_text
from kasatune.errors import DataError, InputError
from kasatune.io.atomic import finite, write_text

_LARGEST_FILE = 256 * 1024**2
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_STDIN = "-"

Text = str | list[str]


def is_table(file: Path) -> bool:
    """Whether a file is a table by its suffix; other files hold one text a line."""
    return file.suffix.lower() in _TABLES


def read_lines_of(file: Path) -> list[Text]:
    """The lines of a text file, or of standard input if its name is "-".

    Raises:
        InputError: the file holds no text, or is damaged.
    """
    text = _standard_input() if str(file) == _STDIN else read_text(file, _LARGEST_FILE)
    lines = text.removesuffix("\n").split("\n")
    if lines == [""]:
        name = "standard input" if str(file) == _STDIN else file
        raise InputError(f"{name} holds no text; write one text per line")
    return [line.removesuffix("\r") for line in lines]


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as fault:
        raise DataError(
            f"standard input is not UTF-8 text ({fault.reason} at byte {fault.start}); convert it to UTF-8"
        ) from fault


def read_table_inputs(file: Path, columns: Sequence[str]) -> list[Text]:
    """The inputs in the rows of a table.

    Args:
        file: its suffix gives the format.
        columns: the columns that hold the input, one or two.

    Raises:
        InputError: the file is damaged, or lacks a column, or a value is not text.
    """
    if not columns:
        names = ", ".join(column_names(file))
        raise InputError(f"{file}: name the column that holds the text with --column; the file has {names}")
    table = read_table(file, columns)
    rows = list(zip(*(table.columns[name] for name in columns), strict=True))
    for number, row in enumerate(rows, start=1):
        for name, value in zip(columns, row, strict=True):
            if not isinstance(value, str):
                raise DataError(f"{file}, row {number}: {name} is {value!r}; it must be text")
    return [row[0] if len(row) == 1 else list(row) for row in rows]


def check_predictions_file(path: Path) -> None:
    """Check that predictions can be written to a file, before they are made.

    Raises:
        InputError: its suffix is not known, or its directory does not exist.
    """
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise InputError(f"--out: {path} received; must end in .csv or .jsonl")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"--out: {path} cannot be written: its directory does not exist, or it is a directory")


def write_predictions(path: Path, predictions: Sequence[Mapping[str, Any]]) -> None:
    """Write predictions as JSON Lines, in the form of `--json`, or as CSV: the input, then what was predicted."""
    if path.suffix.lower() == ".jsonl":
        lines = [json.dumps(finite(dict(item)), ensure_ascii=False) + "\n" for item in predictions]
        write_text(path, "".join(lines))
        return
    buffer = io.StringIO(newline="")
    rows = [_flat(item) for item in predictions]
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def _flat(item: Mapping[str, Any]) -> dict[str, Any]:
    """One row of CSV."""
    given, prediction = item["input"], item["prediction"]
    inputs = {"input": given} if isinstance(given, str) else {f"input_{i}": part for i, part in enumerate(given, 1)}
    if not isinstance(prediction, Mapping):
        return inputs | {"prediction": prediction}
    if "text" in prediction:
        return inputs | {"prediction": prediction["text"]}
    label = prediction["label"]
    return inputs | {"prediction": label, "probability": prediction["scores"][label]}

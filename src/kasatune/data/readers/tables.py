"""Read columns of a CSV, TSV, JSON, JSON Lines or Parquet file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kasatune.data.readers.faults import Faults, nearest, show
from kasatune.data.readers.text_files import MAX_FILE_BYTES, MAX_LINE_BYTES, read_lines, read_text, require_file
from kasatune.errors import DataError
from kasatune.wording import counted

MAX_JSON_BYTES = 256 * 1024**2

_SHOWN_COLUMNS = 20
_DELIMITERS = ",;\t|"
_MAX_KEYS = 1000


@dataclass(frozen=True)
class Table:
    """Some columns of a file.

    Attributes:
        path: path of the file.
        columns: values by column name, all of the same length; None is a missing value.
        lines: the line on which each row begins; None if the format has no lines.
        class_names: the names of the numbers in a column that `datasets` wrote as a ClassLabel, by column.
    """

    path: Path
    columns: dict[str, list[Any]]
    lines: list[int] | None
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def place(self, index: int, column: str) -> str:
        """The place of a value in words; rows count from 1, without the header."""
        line = "" if self.lines is None else f" (line {self.lines[index]})"
        return f"row {index + 1}{line}, column {column!r}"


def read_table(path: Path, columns: Sequence[str]) -> Table:
    """The named columns of a file, whose suffix gives the format.

    CSV and TSV have a header and the quoting of RFC 4180. The header of a CSV file shows whether commas, semicolons,
    tabs or vertical bars separate its columns. A JSON file is a list of objects, a JSON Lines file has one object a
    line; a key that an object lacks is a missing value, like null.

    Args:
        path: ends in .csv, .tsv, .json, .jsonl or .parquet, in upper or lower case.
        columns: names of the columns to read.

    Raises:
        DataError: the file is missing, empty, too large (2 GiB; JSON 256 MiB; a line 10 MiB), damaged, of another
            format or encoding, has rows of differing width or no rows, or a column is missing or occurs twice.
    """
    suffix = _suffix(path)
    table = _READERS[suffix](path, tuple(columns))
    if not len(table):
        raise DataError(f"{path}: the file holds no rows")
    return table


def column_names(path: Path) -> list[str]:
    """The column names of a file for `read_table`; for JSON and JSON Lines those of all rows.

    Raises:
        DataError: see `read_table`.
    """
    suffix = _suffix(path)
    if suffix in (".csv", ".tsv"):
        delimiter = _delimiter(path) if suffix == ".csv" else "\t"
        reader = csv.reader(read_lines(path), delimiter=delimiter, strict=True)
        return next(_records(path, reader), (0, []))[1]
    if suffix == ".jsonl":
        objects = _Objects(path, ())
        for number, line in enumerate(read_lines(path), start=1):
            if line.strip():
                objects.add(f"line {number}", _parse(path, line, number))
        return list(objects.keys)
    if suffix == ".parquet":
        return _schema_names(path)
    objects = _Objects(path, ())
    for number, item in enumerate(_json_list(path), start=1):
        objects.add(f"row {number}", item)
    return list(objects.keys)


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in _READERS and not path.exists():
        raise DataError(f"{path}: no such file (relative paths start at {Path.cwd()})")
    if suffix not in _READERS:
        raise DataError(f"{path}: the suffix {suffix!r} is none of {', '.join(_READERS)}; convert the file")
    return suffix


def _delimited(path: Path, columns: Sequence[str], delimiter: str) -> Table:
    reader = csv.reader(read_lines(path), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        return _delimited_rows(path, columns, reader)
    finally:
        csv.field_size_limit(limit)


def _delimited_rows(path: Path, columns: Sequence[str], reader: Any) -> Table:
    records = _records(path, reader)
    _, header = next(records, (0, []))
    indices = [_find(path, column, header) for column in columns]
    values: list[list[Any]] = [[] for _ in columns]
    lines: list[int] = []
    ragged = Faults(str(path))
    for number, (line, record) in enumerate(records, start=1):
        if len(record) != len(header):
            ragged.add(
                f"row {number} (line {line}): {counted(len(record), 'column')} where the header has {len(header)}"
            )
            continue
        lines.append(line)
        for column_values, index in zip(values, indices, strict=True):
            column_values.append(record[index])
    ragged.raise_any()
    return Table(path, dict(zip(columns, values, strict=True)), lines)


def _records(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Records with the line on which each begins; blank lines are skipped."""
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, line {line}: {_explain(str(error), line)}") from None
        if record:
            yield line, record


def _explain(error: str, line: int) -> str:
    if "unexpected end of data" in error or "field larger than field limit" in error:
        return f'a quoted value that begins in the row of line {line} is not closed (write "" for a quote inside one)'
    if "new-line character" in error:
        return "lines end in a carriage return alone; save the file with line ends LF or CR LF"
    return f"{error}; quote a value that contains a quote, and double that quote"


def _csv(path: Path, columns: Sequence[str]) -> Table:
    return _delimited(path, columns, _delimiter(path))


def _delimiter(path: Path) -> str:
    """The mark between the columns of a .csv file: a comma, or of a header without commas the one that splits it."""
    widths = {}
    for mark in _DELIMITERS:
        reader = csv.reader(read_lines(path), delimiter=mark, strict=True)
        try:
            widths[mark] = len(next((record for record in reader if record), []))
        except csv.Error:  # values in quotes that another mark follows, or a fault that reading will name
            widths[mark] = 0
    return "," if widths[","] > 1 else max(_DELIMITERS, key=lambda mark: widths[mark])


def _tsv(path: Path, columns: Sequence[str]) -> Table:
    return _delimited(path, columns, "\t")


def _find(path: Path, column: str, header: Sequence[str]) -> int:
    """The index of a column.

    Raises:
        DataError: no column or more than one has this name.
    """
    indices = [index for index, name in enumerate(header) if name == column]
    if len(indices) == 1:
        return indices[0]
    if indices:
        numbers = ", ".join(str(index + 1) for index in indices)
        raise DataError(
            f"{path}: the column {column!r} occurs {counted(len(indices), 'time')} (columns {numbers}); rename "
            "all but one"
        )
    mark = next((mark for mark in ";|\t," if len(header) == 1 and mark in header[0]), None)
    hint = (
        f"; values seem to be separated by {mark!r}: rename the file to .csv, or use tabs"
        if mark
        else nearest(column, header)
    )
    shown = ", ".join(map(repr, header[:_SHOWN_COLUMNS])) + (", ..." if len(header) > _SHOWN_COLUMNS else "")
    raise DataError(f"{path}: no column {column!r}{hint} (columns: {shown or 'none'})")


def _json_lines(path: Path, columns: Sequence[str]) -> Table:
    objects = _Objects(path, columns)
    lines = []
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            objects.add(f"line {number}", _parse(path, line, number))
            lines.append(number)
    return Table(path, objects.columns(), lines)


def _json_list(path: Path) -> list[Any]:
    content = _parse(path, read_text(path, MAX_JSON_BYTES), 1)
    if not isinstance(content, list):
        what = "one object" if isinstance(content, dict) else show(content)
        raise DataError(f"{path}: {what} where a list of objects is expected: [{{...}}, {{...}}]")
    return content


def _json(path: Path, columns: Sequence[str]) -> Table:
    objects = _Objects(path, columns)
    for number, item in enumerate(_json_list(path), start=1):
        objects.add(f"row {number}", item)
    return Table(path, objects.columns(), None)


class _Objects:
    """JSON objects as rows: the values of the wanted keys, and the names of all keys."""

    def __init__(self, path: Path, wanted: Sequence[str]) -> None:
        self.path = path
        self.values: dict[str, list[Any]] = {name: [] for name in wanted}
        self.keys: dict[str, None] = {}

    def add(self, place: str, item: Any) -> None:
        if not isinstance(item, dict):
            raise DataError(f"{self.path}, {place}: {show(item)} where an object is expected: {{column: value, ...}}")
        for name, values in self.values.items():
            values.append(item.get(name))
        if len(self.keys) < _MAX_KEYS:
            self.keys.update(dict.fromkeys(item))

    def columns(self) -> dict[str, list[Any]]:
        for name, values in self.values.items():
            if values and all(value is None for value in values) and name not in self.keys:
                _find(self.path, name, list(self.keys))
        return self.values


def _parse(path: Path, text: str, first_line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        place = f"line {first_line + error.lineno - 1}, column {error.colno}"
        raise DataError(f"{path}, {place}: not JSON: {error.msg}") from None
    except _DuplicateKeyError as error:
        raise DataError(f"{path}, line {first_line} or later: an object has the key {error.args[0]!r} twice") from None
    except RecursionError:
        raise DataError(f"{path}, line {first_line} or later: values are nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{path}, line {first_line} or later: {error}") from None


class _DuplicateKeyError(Exception):
    """A JSON object has the same key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKeyError(next(name for name in names if names.count(name) > 1))
    return result


def _parquet(path: Path, columns: Sequence[str]) -> Table:
    with _parquet_file(path) as file:
        for column in columns:
            _find(path, column, file.schema_arrow.names)
        size = _unpacked_bytes(file.metadata, columns)
        if size > MAX_FILE_BYTES:
            limit = f"{MAX_FILE_BYTES / 1024**2:,.0f} MiB"
            raise DataError(f"{path}: {size / 1024**2:,.0f} MiB once unpacked; the limit is {limit}; give a part of it")
        table = file.read(columns=list(columns))
        values = {name: table.column(name).to_pylist() for name in columns}
        return Table(path, values, None, _class_names(file.schema_arrow.metadata or {}))


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """The names of ClassLabel columns, from what `datasets` writes into the schema of a Parquet file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = {column: feature["names"] for column, feature in features.items() if "names" in feature}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):  # another program's metadata
        return {}
    return {
        column: tuple(given)
        for column, given in names.items()
        if isinstance(given, list) and all(isinstance(name, str) and name for name in given)
    }


def _schema_names(path: Path) -> list[str]:
    with _parquet_file(path) as file:
        return list(file.schema_arrow.names)


@contextmanager
def _parquet_file(path: Path) -> Generator[Any]:
    import pyarrow
    import pyarrow.parquet

    require_file(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: not a complete Parquet file ({reason}); was it cut short?") from None


def _unpacked_bytes(metadata: Any, columns: Sequence[str]) -> int:
    total = 0
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            if chunk.path_in_schema.partition(".")[0] in columns:
                total += chunk.total_uncompressed_size
    return total


_READERS: dict[str, Callable[[Path, Sequence[str]], Table]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}

"""Read UTF-8 text files line by line, with limits on size and memory, and report each fault with its line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from kasatune.errors import DataError

MAX_FILE_BYTES = 2 * 1024**3
MAX_LINE_BYTES = 10 * 1024**2

_NEWLINE = b"\n"
_OTHER_KINDS = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
}


def require_file(path: Path, limit: int = MAX_FILE_BYTES) -> None:
    """Refuse a path that is not a readable file, and a file that is empty or larger than `limit` bytes.

    Raises:
        DataError: one of these; the message names path, limit and remedy.
    """
    if "\0" in str(path):
        raise DataError(f"{str(path)!r}: a path cannot contain a NUL character")
    try:
        if path.is_dir():
            raise DataError(f"{path}: this is a folder; name a file in it")
        if not path.is_file():
            what = "not a regular file" if path.exists() else f"no such file (relative paths start at {Path.cwd()})"
            raise DataError(f"{path}: {what}")
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: no permission to read this file")
    if size == 0:
        raise DataError(f"{path}: the file is empty")
    if size > limit:
        raise DataError(
            f"{path}: {size / 1024**2:,.0f} MiB; the limit is {limit / 1024**2:,.0f} MiB; give a part of it"
        )


def require_folder(path: Path) -> None:
    """Refuse a path that is not a folder.

    Raises:
        DataError: it does not exist, or is a file.
    """
    if not path.is_dir():
        what = "this is a file; name its folder" if path.exists() else "no such folder"
        raise DataError(f"{path}: {what} (relative paths start at {Path.cwd()})")


def read_lines(path: Path) -> Iterator[str]:
    r"""The lines of a UTF-8 file with their line ends; a byte order mark before the first is dropped.

    Only one line is in memory at a time.

    Raises:
        DataError: the file is missing, empty or over 2 GiB; a line is over 10 MiB, not UTF-8, or holds a NUL byte.
    """
    require_file(path)
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
            if len(line) > MAX_LINE_BYTES:
                raise DataError(
                    f"{path}, line {number}: over {MAX_LINE_BYTES / 1024**2:.0f} MiB, the limit of a line;"
                    " is this a text file with one row per line?"
                )
            yield _decode(path, number, offset, line)
            offset += len(line)


def read_text(path: Path, limit: int) -> str:
    """The content of a UTF-8 file of at most `limit` bytes, without a byte order mark.

    Raises:
        DataError: as for `read_lines`, but with no limit on the length of a line.
    """
    require_file(path, limit)
    return _decode(path, 1, 0, path.read_bytes())


def _decode(path: Path, line: int, offset: int, data: bytes) -> str:
    """Decode `data`, which begins at byte `offset` and line `line` of the file."""
    kind = next((kind for mark, kind in _OTHER_KINDS.items() if not offset and data.startswith(mark)), None)
    remedy = f"it looks like {kind}; save it as UTF-8 text" if kind else "save the file as UTF-8 text"
    if kind == "Parquet":  # its first bytes are valid UTF-8, so decoding might not fail
        raise DataError(f"{path}: it looks like Parquet; name it .parquet")
    try:
        text = data.decode("utf-8")
        nul = data.find(b"\0")
    except UnicodeDecodeError as error:
        place = f"line {line + data.count(_NEWLINE, 0, error.start)}, byte offset {offset + error.start}"
        raise DataError(f"{path}, {place}: 0x{data[error.start]:02x} is not UTF-8; {remedy}") from None
    if nul >= 0:
        place = f"line {line + data.count(_NEWLINE, 0, nul)}, byte offset {offset + nul}"
        raise DataError(f"{path}, {place}: a NUL byte, which text cannot contain; {remedy}")
    return text.removeprefix("\ufeff") if not offset else text

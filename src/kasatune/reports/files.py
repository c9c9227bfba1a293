"""Whole files or none."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from kasatune.errors import OutputError


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of text in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to a temporary name beside `path`, then rename it.

    The name is the same each time, so that what a kill leaves is gone with the next writing.

    Raises:
        OutputError: the directory cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise OutputError(f"{path}: cannot be written ({error.strerror}); free space or choose another place") from None

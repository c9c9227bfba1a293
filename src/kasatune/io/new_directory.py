"""A directory that appears whole or not at all, whatever ends the process that writes it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kasatune.errors import OutputError

try:
    import fcntl
except ImportError:  # where there is none, what a kill leaves behind stays
    fcntl = None

_SUFFIX = ".unfinished"


def require_free(out: Path) -> None:
    """`out` does not exist, or is an empty directory.

    Raises:
        OutputError: it holds something, is a file or a link, or cannot be looked at.
    """
    try:
        taken = os.path.lexists(out) and (out.is_symlink() or not out.is_dir() or any(out.iterdir()))
    except (OSError, ValueError) as error:
        raise OutputError(f"{out} cannot be written: {error}") from error
    if taken:
        raise OutputError(f"{out} exists and is not empty; name another directory or empty it first")


@contextmanager
def whole_directory(out: Path) -> Iterator[Path]:
    """A directory beside `out` that takes its name when everything in it is written, and else is removed.

    What a killed process left beside `out` is removed first.

    Raises:
        OutputError: `out` holds something, or cannot be made.
    """
    out = out.absolute()
    require_free(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(out)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", suffix=_SUFFIX, dir=out.parent))
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}") from error
    held = _lock(temporary)
    try:
        yield temporary
        temporary.chmod(0o755)
        if out.exists():
            out.rmdir()
        temporary.replace(out)
    finally:
        if held is not None:
            os.close(held)
        shutil.rmtree(temporary, ignore_errors=True)


def _clear_abandoned(out: Path) -> None:
    for path in out.parent.iterdir():
        if path.name.startswith(f".{out.name}-") and path.name.endswith(_SUFFIX) and path.is_dir():
            held = _lock(path)
            if held is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(held)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder until it is closed or the process ends; None where another one does."""
    if fcntl is None:
        return None
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor
    return None

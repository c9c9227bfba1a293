"""Atomic writes: a file or directory appears complete or not at all, and what a killed process left is removed.

Everything is written under a temporary name in the folder of its target (`.NAME.unfinished`, or
`.NAME-xxx.unfinished`) and then renamed. A name of that form is never a result, so any later start may remove it.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kasatune.errors import OutputError
from kasatune.io.locks import try_lock

SUFFIX = ".unfinished"


def temporary_path(path: Path) -> Path:
    """The name under which `path` is written; the same each time, so that the next write replaces what a kill left."""
    return path.with_name(f".{path.name}{SUFFIX}")


def is_temporary(path: Path) -> bool:
    """Whether `path` is named like something that was not written to its end."""
    return path.name.startswith(".") and path.name.endswith(SUFFIX)


@contextmanager
def atomic_write(path: Path, *, shared: bool = False) -> Generator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` if the block succeeds, and remove it if it fails.

    The file gets the permissions that the umask gives a new file: safetensors would let only its owner read it.

    Args:
        path: the file to write or replace; its directory exists.
        shared: several processes may write `path` at the same time, so each uses a temporary name that no other has.

    Raises:
        OSError: the file cannot be written; its `filename` is `path`.
    """
    temporary = temporary_path(path)
    if shared:
        temporary = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}")
    try:
        yield temporary
        temporary.chmod(0o666 & ~umask())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` with `content` atomically.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of `text` in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """`write_text` of `value` as JSON; NaN and infinity, which JSON lacks, become null."""
    write_text(path, json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """`value` with None in place of every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def require_free(out: Path) -> None:
    """Check that `out` does not exist, or is an empty directory.

    Raises:
        OutputError: `out` holds something, is a file or a link, or cannot be read.
    """
    try:
        taken = os.path.lexists(out) and (out.is_symlink() or not out.is_dir() or any(out.iterdir()))
    except (OSError, ValueError) as error:
        raise OutputError(f"{out} cannot be written: {error}") from error
    if taken:
        raise OutputError(f"{out} exists and is not empty; name another directory or empty it first")


@contextmanager
def new_directory(out: Path) -> Generator[Path]:
    """Yield a temporary directory next to `out`; rename it to `out` if the block succeeds, else remove it.

    Directories left next to `out` by killed processes are removed first; a lock marks those still being written.
    Parents of `out` that were made are removed again if the block fails.

    Raises:
        OutputError: `out` is not free, or cannot be made.
    """
    out = out.absolute()
    require_free(out)
    made = [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", suffix=SUFFIX, dir=out.parent))
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}") from error
    lock = _lock_directory(temporary)
    try:
        yield temporary
        temporary.chmod(0o755)
        if out.exists():
            out.rmdir()
        temporary.replace(out)
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # it is not empty
                parent.rmdir()


def replace_path(source: Path, target: Path) -> None:
    """Move the file or directory `source` to `target`, replacing what exists there.

    The old content is renamed first and removed last, so that a kill never leaves a mixture of the two.
    """
    old = source.with_name(f".{target.name}.replaced{SUFFIX}")
    remove(old)
    if target.exists():
        target.rename(old)
    source.rename(target)
    remove(old)


def remove(path: Path) -> None:
    """Delete a file or a directory, if it exists; a link is deleted, not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_unfinished(folder: Path, *, before: float | None = None) -> None:
    """Delete what killed processes left in `folder`, a directory that only kasatune writes to.

    Args:
        folder: where to look; not below it.
        before: delete only what was last changed before this time, in seconds since the epoch: other processes may be
            writing to the same directory.
    """
    for path in folder.iterdir():
        if is_temporary(path):
            with suppress(OSError):
                if before is None or path.stat().st_mtime < before:
                    remove(path)


def umask() -> int:
    """The umask of this process."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove_abandoned(out: Path) -> None:
    for path in out.parent.iterdir():
        if path.name.startswith(f".{out.name}-") and path.name.endswith(SUFFIX) and path.is_dir():
            lock = _lock_directory(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _lock_directory(folder: Path) -> int | None:
    """A descriptor that locks `folder` until it is closed; None where another process holds it or locks are missing."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            if try_lock(descriptor):
                return descriptor
        except BlockingIOError:
            pass
        os.close(descriptor)
    return None

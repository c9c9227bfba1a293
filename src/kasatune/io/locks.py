"""Locks between processes: one process at a time in a run directory, a comparison or an append-only file.

All are `flock` locks: the system releases them when a process ends, however it ends. On file systems or platforms
without them nothing is locked.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from kasatune.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
"""Name of the file that is locked in a directory; it names the process that holds the lock."""


def try_lock(descriptor: int) -> bool:
    """Lock an open file or directory until its descriptor is closed.

    Returns:
        False where there are no locks.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


@contextmanager
def directory_lock(out: Path, *, what: str = "run") -> Generator[None]:
    """Hold the lock of the directory `out`, which exists.

    Args:
        out: the directory.
        what: what is written there, for the message.

    Raises:
        OutputError: another process holds the lock.
    """
    descriptor = _acquire(out, what)
    try:
        yield
    finally:
        if descriptor is not None:
            (out / LOCK).unlink(missing_ok=True)
            os.close(descriptor)


def require_unlocked(out: Path, *, what: str = "run") -> None:
    """Check that no other process holds the lock of the directory `out`; writes nothing.

    Raises:
        OutputError: another process holds the lock.
    """
    with suppress(FileNotFoundError, PermissionError):
        descriptor = os.open(out / LOCK, os.O_RDWR)
        try:
            _lock(descriptor, out, what)
        finally:
            os.close(descriptor)


def lock_holder(out: Path) -> str | None:
    """The process that holds the lock of the directory `out`, as "process N on HOST"; None if it is not locked."""
    try:
        descriptor = os.open(out / LOCK, os.O_RDWR)
    except OSError:
        return None
    try:
        try_lock(descriptor)
    except BlockingIOError:
        return os.read(descriptor, 200).decode("utf-8", "replace") or "another process"
    finally:
        os.close(descriptor)
    return None


def holder_here(out: Path) -> int | None:
    """The ID of the process of this machine that holds the lock of the directory `out`; None if there is none."""
    words = (lock_holder(out) or "").split()
    is_here = len(words) == 4 and words[0] == "process" and words[3] == socket.gethostname()
    return int(words[1]) if is_here and words[1].isdecimal() else None


def _acquire(out: Path, what: str) -> int | None:
    while True:
        descriptor = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(descriptor, out, what):
                os.close(descriptor)
                (out / LOCK).unlink(missing_ok=True)
                return None
            # The previous holder may have removed the file after it was opened and before it was locked here.
            if os.fstat(descriptor).st_ino == (out / LOCK).stat().st_ino:
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, out: Path, what: str) -> bool:
    try:
        return try_lock(descriptor)
    except BlockingIOError as error:
        holder = os.read(descriptor, 200).decode("utf-8", "replace") or "another process"
        raise OutputError(
            f"{out}: {holder} is working on this {what}; wait for it or stop it, or give another directory"
        ) from error

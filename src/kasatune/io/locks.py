"""One process at a time in a run directory."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kasatune.errors import OutputError

try:
    import fcntl
except ImportError:  # where there is none, nothing is locked
    fcntl = None

LOCK = ".lock"


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold `out`, which exists; the system lets go of it when the process ends, however it ends.

    On file systems without locks nothing is held.

    Raises:
        OutputError: another process holds it.
    """
    descriptor = _take(out)
    try:
        yield
    finally:
        if descriptor is not None:
            (out / LOCK).unlink(missing_ok=True)
            os.close(descriptor)


def require_unheld(out: Path) -> None:
    """No other process is at work in `out`; writes nothing.

    Raises:
        OutputError: one is.
    """
    with suppress(FileNotFoundError, PermissionError):
        descriptor = os.open(out / LOCK, os.O_RDWR)
        try:
            _lock(descriptor, out)
        finally:
            os.close(descriptor)


def _take(out: Path) -> int | None:
    while True:
        descriptor = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(descriptor, out):
                os.close(descriptor)
                (out / LOCK).unlink(missing_ok=True)
                return None
            # The holder before may have removed the file between its being opened and locked here.
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


def _lock(descriptor: int, out: Path) -> bool:
    """Whether there are locks here."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as fault:
        holder = os.read(descriptor, 200).decode("utf-8", "replace") or "another process"
        raise OutputError(
            f"{out}: {holder} is at work on this run; wait for it or stop it, or give another directory"
        ) from fault
    except OSError:
        return False
    return True

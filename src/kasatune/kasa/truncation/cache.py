"""Tails that were computed before on this machine, kept in the user's cache directory."""

from __future__ import annotations

import logging
import os
import time
import warnings
from contextlib import suppress
from pathlib import Path

from kasatune.errors import InputError, ModelError
from kasatune.kasa.truncation.files import SUFFIX, TailKey, read_tail, write_tail
from kasatune.linalg import TailSVD

logger = logging.getLogger("kasatune")

FOLDER, LIMIT = "KASATUNE_CACHE", "KASATUNE_CACHE_LIMIT"
DEFAULT_LIMIT = 5.0
# Below this min(out, in), decomposing anew is as fast as opening a file.
SMALLEST = 256
_GIB = 2**30
_ABANDONED = 24 * 3600.0


class TailCache:
    """Tails in files, the least recently used of which make room for new ones.

    Whatever is wrong with the cache, nothing fails for it: a damaged file is removed, said so, and its tail computed
    again; a folder that cannot be written keeps nothing. Any number of processes may share one.

    Args:
        folder: where the files are; made when the first is written.
        limit: bytes that all files may take together.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._written = False
        self._usable = True

    @classmethod
    def of_user(cls) -> TailCache | None:
        """The user's: $KASATUNE_CACHE, else $XDG_CACHE_HOME/kasatune, else ~/.cache/kasatune; None where it is off.

        KASATUNE_CACHE=off switches it off. KASATUNE_CACHE_LIMIT is its size in GiB, 5 where nothing is said.

        Raises:
            InputError: the limit is no number above 0.
        """
        given = os.environ.get(FOLDER)
        if given is not None and given.strip().lower() in ("off", "0", "no", "false", ""):
            return None
        try:
            limit = float(os.environ.get(LIMIT) or DEFAULT_LIMIT)
            if not 0 < limit < float("inf"):
                raise ValueError
        except ValueError:
            raise InputError(
                f"{LIMIT}={os.environ.get(LIMIT)!r} is no number of GiB above 0; set one, or {FOLDER}=off"
            ) from None
        try:
            home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError:  # a user without a home
            return None
        root = Path(given).expanduser() if given else home / "kasatune"
        return cls(root / "tails", int(limit * _GIB))

    def get(self, key: TailKey) -> TailSVD | None:
        """The tail of a key, None where it is not there whole."""
        path = self.folder / key.filename
        try:
            tail = read_tail(path, key)
        except ModelError as fault:
            warnings.warn(f"a cached tail is computed again: {fault}", stacklevel=2)
            _remove(path)
            return None
        if tail is not None:
            with suppress(OSError):
                os.utime(path)  # its last use, by which the oldest is told
        return tail

    def put(self, key: TailKey, tail: TailSVD) -> None:
        """Keep a tail."""
        if not self._usable:
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_tail(self.folder, key, tail)
            self._written = True
        except OSError as fault:
            self._usable = False
            logger.warning("tails are not kept: %s cannot be written (%s)", self.folder, fault)

    def trim(self) -> None:
        """Remove the files that were used longest ago until the rest keeps the limit; and what a kill left behind."""
        if not self._written:
            return
        self._written = False
        files: list[tuple[float, int, Path]] = []
        try:
            for entry in os.scandir(self.folder):
                state = entry.stat()
                if entry.name.endswith(SUFFIX):
                    files.append((state.st_mtime, state.st_size, Path(entry.path)))
                elif time.time() - state.st_mtime > _ABANDONED:
                    _remove(Path(entry.path))
        except OSError:
            return
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit:
                break
            _remove(path)
            total -= size


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)

"""A cache of model answers on disk: one JSON object a line, synced before the next request is sent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Self

from kasatune.errors import InputError, OutputError
from kasatune.io.locks import try_lock

_NEWLINE = b"\n"


class AnswerCache:
    """An append-only file of JSON objects with a `key`, open in one process at a time; use as a context manager.

    A last line that was cut off by a kill is removed when the file is opened; each line is synced to disk before `add`
    returns. Of several lines with one key the last counts.

    Args:
        path: the file; it and its folder are created if they do not exist.

    Raises:
        OutputError: another process has the file open, or it cannot be written.
        InputError: a line other than the last is not such an object.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as fault:
            raise OutputError(f"{path}: {fault.strerror or fault}; give another directory") from fault
        try:
            self._claim()
            self._entries = self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> dict[str, Any] | None:
        """The object with this key, or None."""
        return self._entries.get(key)

    def add(self, key: str, entry: Mapping[str, Any]) -> None:
        """Append an object and sync it to disk."""
        content = {"key": key, **entry}
        line = json.dumps(content, ensure_ascii=True, allow_nan=False).encode() + _NEWLINE
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._entries[key] = content

    def _claim(self) -> None:
        try:
            try_lock(self._file.fileno())
        except BlockingIOError as fault:
            raise OutputError(f"{self.path}: another process writes to it; wait until it is done") from fault

    def _read(self) -> dict[str, dict[str, Any]]:
        self._file.seek(0)
        content = self._file.read()
        complete = content.rfind(_NEWLINE) + 1
        if complete < len(content):
            self._file.truncate(complete)
        entries = {}
        for number, line in enumerate(content[:complete].splitlines(), start=1):
            try:
                entry = json.loads(line)
                entries[str(entry["key"])] = entry
            except (ValueError, TypeError, KeyError) as fault:
                raise InputError(
                    f"{self.path}, line {number}: not a JSON object with a key; delete the line"
                ) from fault
        return entries

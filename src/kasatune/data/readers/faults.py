"""Collect the faults of a data file, so that one error message lists several of them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NoReturn

from kasatune.errors import DataError
from kasatune.wording import counted

SHOWN = 5
_MAX_SHOWN_LENGTH = 60
_MAX_COMPARED = 1000  # each takes microseconds, and a file may have a million columns


class Faults:
    """Counts faults and stores the first few, so that a large file with a fault in every row needs little memory."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.count = 0
        self.first: list[str] = []

    def add(self, sentence: str) -> None:
        """Count a fault, and store it if it is one of the first."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(sentence)

    def raise_any(self) -> None:
        """Raise the collected faults, if there are any.

        Raises:
            DataError: the first faults, and their number.
        """
        if self.count:
            self._raise()

    def _raise(self) -> NoReturn:
        if self.count == 1:
            raise DataError(f"{self.source}, {self.first[0]}")
        lines = "".join(f"\n  - {sentence}" for sentence in self.first)
        rest = f"\n  and {self.count - SHOWN:,} more" if self.count > SHOWN else ""
        raise DataError(f"{self.source}: {counted(self.count, 'fault')}{lines}{rest}")


def show(value: object) -> str:
    """A value for an error message: quoted, and cut if it is long."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_LENGTH else f"{text[:_MAX_SHOWN_LENGTH]}... ({len(text):,} characters)"


def nearest(word: str, known: Sequence[str]) -> str:
    """The words "did you mean" with the name in `known` that is most similar to `word`, or nothing."""
    folded: dict[str, str] = {}
    for name in known[:_MAX_COMPARED]:
        folded.setdefault(name.strip().casefold(), name)
    close = difflib.get_close_matches(word.strip().casefold(), list(folded), n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""

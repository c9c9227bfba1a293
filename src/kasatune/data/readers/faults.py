"""Faults of a data set, gathered so that one message shows several of them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NoReturn

from kasatune.errors import DataError

SHOWN = 5
_LONGEST = 60
_MOST_COMPARED = 1000  # each takes microseconds, and a file may have a million columns


class Faults:
    """Counts faults and keeps the first few, so that a file of any size that is wrong throughout needs no memory."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.count = 0
        self.first: list[str] = []

    def add(self, sentence: str) -> None:
        """Count a fault, and keep it if it is one of the first."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(sentence)

    def raise_any(self) -> None:
        """Raise what was gathered, if anything was.

        Raises:
            DataError: the first faults, and how many there are.
        """
        if self.count:
            self._raise()

    def _raise(self) -> NoReturn:
        if self.count == 1:
            raise DataError(f"{self.source}, {self.first[0]}")
        lines = "".join(f"\n  - {sentence}" for sentence in self.first)
        rest = f"\n  and {self.count - SHOWN:,} more" if self.count > SHOWN else ""
        raise DataError(f"{self.source}: {self.count:,} faults{lines}{rest}")


def show(value: object) -> str:
    """A value as a message shows it: quoted, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text):,} characters)"


def nearest(word: str, known: Sequence[str]) -> str:
    """The words "did you mean" with the one of `known` that is most like `word`, or nothing."""
    folded: dict[str, str] = {}
    for name in known[:_MOST_COMPARED]:
        folded.setdefault(name.strip().casefold(), name)
    close = difflib.get_close_matches(word.strip().casefold(), list(folded), n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""

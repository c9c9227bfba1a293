"""How alike two texts are: ROUGE-L of their words, fast enough to hold each new text against thousands."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return _WORD.findall(text.lower())


def rouge_l_f1(a: Sequence[str], b: Sequence[str]) -> float:
    """2 LCS(a, b) / (|a| + |b|), LCS the length of the longest common subsequence; 0 where either is empty.

    Source: Lin, ACL workshop 2004, with equal weight on precision and recall.
    """
    return 2 * _common(_places(a), len(a), b) / (len(a) + len(b)) if a and b else 0.0


class SimilarTexts:
    """Texts that new ones are held against.

    Args:
        threshold: two texts of this ROUGE-L F1 or more are too much alike; 0 < threshold <= 1.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._texts: list[list[str]] = []

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """One more."""
        self._texts.append(words(text))

    def find(self, text: str) -> int | None:
        """The number of the first text that is too much like this one, or None."""
        new = words(text)
        places = _places(new)
        for number, other in enumerate(self._texts):
            both = len(new) + len(other)
            if not both or 2 * min(len(new), len(other)) < self.threshold * both:
                continue  # not even all the words of the shorter would do
            if 2 * _common(places, len(new), other) >= self.threshold * both:
                return number
        return None


def _places(tokens: Sequence[str]) -> dict[str, int]:
    """For each token the bits of the places where it stands."""
    found: dict[str, int] = {}
    for place, token in enumerate(tokens):
        found[token] = found.get(token, 0) | 1 << place
    return found


def _common(places: dict[str, int], length: int, other: Sequence[str]) -> int:
    """The length of the longest common subsequence, a row of the table at a time as the bits of one number.

    Source: Hyyro, "Bit-parallel LCS-length computation revisited", AWOCA 2004.
    """
    whole = (1 << length) - 1
    row = whole
    for token in other:
        matches = row & places.get(token, 0)
        row = (row + matches | row - matches) & whole
    return length - row.bit_count()

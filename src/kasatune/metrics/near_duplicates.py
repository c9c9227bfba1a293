"""Find near-duplicates of a text among thousands of others, by the ROUGE-L F1 of their words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kasatune.metrics.longest_common_subsequence import lcs_length, lcs_length_from_positions, token_positions

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The runs of letters and digits in a text, in lower case."""
    return _WORD.findall(text.lower())


def rouge_l_f1(a: Sequence[str], b: Sequence[str]) -> float:
    """2 LCS(a, b) / (|a| + |b|), LCS the length of the longest common subsequence; 0 if either is empty.

    Source: Lin, ACL workshop 2004, with equal weights of precision and recall.
    """
    return 2 * lcs_length(a, b) / (len(a) + len(b)) if a and b else 0.0


class NearDuplicates:
    """A growing collection of texts that new texts are compared with.

    Args:
        threshold: ROUGE-L F1 from which two texts are near-duplicates; 0 < threshold <= 1.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._texts: list[list[str]] = []

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """Add a text to the collection."""
        self._texts.append(words(text))

    def find(self, text: str) -> int | None:
        """The index of the first near-duplicate of `text` in the collection, or None."""
        new = words(text)
        positions = token_positions(new)
        for index, other in enumerate(self._texts):
            total = len(new) + len(other)
            if not total or 2 * min(len(new), len(other)) < self.threshold * total:
                continue  # too different in length: even if the shorter text were contained in the other
            if 2 * lcs_length_from_positions(positions, len(new), other) >= self.threshold * total:
                return index
        return None

"""Counts of n-grams: runs of n neighbouring tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

NGram = tuple[str, ...]


def count_ngrams(tokens: Sequence[str], n: int) -> Counter[NGram]:
    """How often each run of `n` tokens occurs."""
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def clipped_matches(tokens: Sequence[str], references: Sequence[Sequence[str]], n: int) -> Counter[NGram]:
    """min(count in `tokens`, most counts in one reference) for each n-gram that both have."""
    most: Counter[NGram] = Counter()
    for reference in references:
        most |= count_ngrams(reference, n)
    return count_ngrams(tokens, n) & most

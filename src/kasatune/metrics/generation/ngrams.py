"""Counts of n-grams, runs of n consecutive tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

NGram = tuple[str, ...]


def count_ngrams(tokens: Sequence[str], n: int) -> Counter[NGram]:
    """How often each run of `n` tokens occurs."""
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def clipped_matches(tokens: Sequence[str], references: Sequence[Sequence[str]], n: int) -> Counter[NGram]:
    """For each n-gram in common: min(its count in `tokens`, its largest count in any one reference)."""
    largest: Counter[NGram] = Counter()
    for reference in references:
        largest |= count_ngrams(reference, n)
    return count_ngrams(tokens, n) & largest

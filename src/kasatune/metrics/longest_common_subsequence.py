"""Length of the longest common subsequence (LCS) of two token sequences, bit-parallel."""

from __future__ import annotations

from collections.abc import Sequence


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence of `a` and `b`."""
    return lcs_length_from_positions(token_positions(a), len(a), b)


def token_positions(tokens: Sequence[str]) -> dict[str, int]:
    """For each distinct token a bit mask of its positions."""
    positions: dict[str, int] = {}
    for index, token in enumerate(tokens):
        positions[token] = positions.get(token, 0) | 1 << index
    return positions


def lcs_length_from_positions(positions: dict[str, int], length: int, other: Sequence[str]) -> int:
    """LCS length of a text, given as its `token_positions` and number of tokens, and `other`.

    A row of the dynamic-programming table is kept in the bits of one integer.

    Source: Hyyro, "Bit-parallel LCS-length computation revisited", AWOCA 2004.
    """
    all_bits = (1 << length) - 1
    row = all_bits
    for token in other:
        matches = row & positions.get(token, 0)
        row = (row + matches | row - matches) & all_bits
    return length - row.bit_count()

from __future__ import annotations

from typing import Literal

from kasatune.errors import InputError

Convention = Literal["paper", "authors"]
Core = Literal["diagonal", "dense"]


def dropped_count(out_features: int, in_features: int, r: int, convention: Convention) -> int:
    """Number of singular triplets that truncation drops from a weight of shape (out_features, in_features).

    `paper` drops the r smallest of k = min(out, in). `authors` keeps what lies before index in - r, as the released
    code does: max(0, k - (in - r)), hence nothing at all from a weight with out <= in - r.

    Raises:
        InputError: the convention is neither "paper" nor "authors".
    """
    check_convention(convention)
    if convention == "paper":
        return r
    return max(0, min(out_features, in_features) - (in_features - r))


def check_convention(convention: str) -> None:
    """Raise InputError unless convention is one of the two published readings."""
    if convention not in ("paper", "authors"):
        raise InputError(f"convention is {convention!r}, must be 'paper' or 'authors': choose one of the two")


def check_core(core: str) -> None:
    """Raise InputError unless core is one of the two shapes that sigma can have."""
    if core not in ("diagonal", "dense"):
        raise InputError(f"core is {core!r}, must be 'diagonal' or 'dense': choose one of the two")

"""What a judge's words say: a rating, a winner, or nothing that can be counted."""

from __future__ import annotations

import re
from typing import Literal

Verdict = Literal["A", "B", "tie"]

_RATING = re.compile(r"\[\[\s*(-?\d+(?:\.\d+)?)\s*\]\]")
_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_MEANING: dict[str, Verdict] = {"A": "A", "B": "B", "C": "tie"}


def rating(text: str, low: float, high: float) -> float | None:
    """The number in "[[7]]" or "[[7.5]]"; None where there is none, it lies outside low to high, or two differ."""
    found = {float(number) for number in _RATING.findall(text)}
    if len(found) != 1:
        return None
    value = found.pop()
    return value if low <= value <= high else None


def verdict(text: str) -> Verdict | None:
    """What "[[A]]", "[[B]]" or "[[C]]" (a tie) says; None where there is none, or two differ."""
    found = set(_VERDICT.findall(text))
    return _MEANING[found.pop()] if len(found) == 1 else None

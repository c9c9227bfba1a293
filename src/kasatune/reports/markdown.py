"""Markdown from values: escaped text, code spans, code blocks and tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKS = re.compile(r"([\\`*_{}\[\]<>|#~&])")


def text(value: object) -> str:
    """`value` as text on one line, with Markdown characters escaped."""
    return _MARKS.sub(r"\\\1", " ".join(str(value).split()))


def code(value: object) -> str:
    """`value` as a code span on one line, with a fence longer than any run of backticks inside."""
    plain = " ".join(str(value).split())
    longest = max((len(run) for run in re.findall(r"`+", plain)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{plain}{pad}{fence}".replace("|", r"\|")


def block(content: str, language: str = "") -> str:
    """`content` as a code block, with a fence longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content.rstrip()}\n{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0) -> str:
    """A table of Markdown cells; the last `numbers` columns are aligned to the right."""
    rule = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))

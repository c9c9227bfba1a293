"""Console output: results and tables on standard output, notes and errors on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, Literal

from kasatune.io.atomic import finite
from kasatune.redaction import presentable, printable

Side = Literal["left", "right"]


def say(text: str = "") -> None:
    """Print one line of the result to standard output."""
    print(text)


def note(text: str) -> None:
    """Print one line to standard error."""
    print(presentable(text), file=sys.stderr)


def complain(text: str) -> None:
    """Print an error message to standard error, in red on a terminal with colours."""
    from rich.console import Console
    from rich.text import Text

    message = Text.assemble(("error: ", "bold red"), presentable(text))
    Console(stderr=True, soft_wrap=True, highlight=False).print(message)


def print_json(value: Any) -> None:
    """Print `value` as JSON that every parser accepts: ASCII, and null for NaN and infinity."""
    print(json.dumps(finite(value), indent=2))


@contextmanager
def results_only() -> Generator[None]:
    """Redirect what libraries print to standard error, so that standard output holds only the result."""
    with redirect_stdout(sys.stderr):
        yield


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", numbers: int = 0) -> None:
    """Print a table: with rules on a terminal, as aligned plain lines elsewhere.

    Args:
        head: names of the columns.
        rows: cells as text.
        title: a line above it.
        numbers: how many of the last columns hold numbers, which are right-aligned.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    sides: list[Side] = ["right" if place >= len(head) - numbers else "left" for place in range(len(head))]
    if _on_terminal():
        _print_rich(head, rows, title, sides)
    else:
        _print_plain(head, rows, title, sides)


def _on_terminal() -> bool:
    return sys.stdout.isatty()


def _print_rich(head: Sequence[str], rows: Sequence[Sequence[str]], title: str, sides: Sequence[Side]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="bold") if title else None, title_justify="left", box=box.SIMPLE_HEAD)
    for name, side in zip(head, sides, strict=True):
        table.add_column(Text(name), justify=side, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)


def _print_plain(head: Sequence[str], rows: Sequence[Sequence[str]], title: str, sides: Sequence[Side]) -> None:
    if title:
        print(title)
    widths = [max(len(line[place]) for line in (head, *rows)) for place in range(len(head))]
    for line in (head, *rows):
        cells = [
            cell.rjust(width) if side == "right" else cell.ljust(width)
            for cell, width, side in zip(line, widths, sides, strict=True)
        ]
        print("  ".join(cells).rstrip())

"""Two texts in two columns: updated while they grow on a terminal, printed once they are complete elsewhere."""

from __future__ import annotations

import shutil
import sys
import textwrap
from itertools import zip_longest
from typing import Any, Self

from kasatune.redaction import printable

_PLAIN_WIDTH = 100
_GAP = " | "


class Columns:
    """Two columns on standard output.

    Args:
        left: heading of the left column.
        right: heading of the right column.
    """

    def __init__(self, left: str, right: str) -> None:
        self._heads = (left, right)
        self._texts = ["", ""]
        self._live: Any = None

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(self._table(), refresh_per_second=8, vertical_overflow="visible")
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is None:
            print("\n".join(side_by_side(self._heads, self._texts, _PLAIN_WIDTH)), flush=True)
            return
        self._live.update(self._table(), refresh=True)
        self._live.__exit__(*error)

    def add(self, column: int, piece: str) -> None:
        """Append a piece to the text of column 0 or 1."""
        self._texts[column] += printable(piece)
        if self._live is not None:
            self._live.update(self._table())

    def _table(self) -> Any:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, width=shutil.get_terminal_size().columns)
        for head in self._heads:
            table.add_column(Text(head), ratio=1, overflow="fold")
        table.add_row(*(Text(text) for text in self._texts))
        return table


def side_by_side(heads: tuple[str, str], texts: list[str], width: int) -> list[str]:
    """Lines with two wrapped texts below their headings."""
    each = (width - len(_GAP)) // 2
    columns = [[head, "-" * each, *_wrapped(text, each)] for head, text in zip(heads, texts, strict=True)]
    return [f"{left:<{each}}{_GAP}{right}".rstrip() for left, right in zip_longest(*columns, fillvalue="")]


def _wrapped(text: str, width: int) -> list[str]:
    return [part for line in text.expandtabs(4).split("\n") for part in textwrap.wrap(line, width) or [""]]

"""A read-only table of named rows, extended by the entry points of installed packages (plugins)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, Protocol, TypeVar

from kasatune.errors import InputError


class Named(Protocol):
    """A row with a name."""

    @property
    def name(self) -> str:
        """The key of the row in its table."""
        ...


Row = TypeVar("Row", bound=Named)


class PluginTable(Mapping[str, Row], Generic[Row]):
    """Built-in rows by name, followed by those that installed packages declare as entry points.

    An entry point names one row, or a list or tuple of rows: `name = package.module:ROW`. Entry points are read when an
    unknown name is looked up or the table is listed; looking up a built-in row reads none.

    Args:
        rows: the built-in rows.
        group: group of the entry points, such as "kasatune.tasks".
        row_type: class of the rows.
    """

    def __init__(self, rows: Iterable[Row], group: str, row_type: type[Row]) -> None:
        self._built_in = {row.name: row for row in rows}
        self._group = group
        self._row_type = row_type
        self._all: dict[str, Row] | None = None

    def __getitem__(self, name: str) -> Row:
        row = self._built_in.get(name)
        return self._rows()[name] if row is None else row

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows())

    def __len__(self) -> int:
        return len(self._rows())

    def _rows(self) -> dict[str, Row]:
        """Every row.

        Raises:
            InputError: an entry point cannot be imported or is no row, or two rows have one name.
        """
        if self._all is None:
            rows = dict(self._built_in)
            for point in sorted(entry_points(group=self._group)):
                for row in self._load(point):
                    if row.name in rows:
                        raise InputError(f"{self._describe(point)}: the name {row.name!r} is taken; rename this row")
                    rows[row.name] = row
            self._all = rows
        return self._all

    def _load(self, point: EntryPoint) -> list[Row]:
        try:
            value = point.load()
        except Exception as error:  # whatever the code of another package raises when it is imported
            raise InputError(
                f"{self._describe(point)} cannot be imported ({type(error).__name__}: {error});"
                " repair or uninstall the package"
            ) from error
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        rows = [row for row in values if isinstance(row, self._row_type)]
        if len(rows) < len(values):
            raise InputError(
                f"{self._describe(point)} is not a {self._row_type.__name__}, nor a list of them; repair or uninstall"
                " the package"
            )
        return rows

    def _describe(self, point: EntryPoint) -> str:
        package = f" of the package {point.dist.name}" if point.dist else ""
        return f"the entry point {point.name} = {point.value} ({self._group}){package}"

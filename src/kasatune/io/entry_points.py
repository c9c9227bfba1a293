"""Load the rows that installed packages declare as entry points, for the tables of methods and tasks."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TypeVar

from kasatune.errors import InputError

Row = TypeVar("Row")


def load_rows(group: str, row_type: type[Row]) -> list[Row]:
    """The objects that the entry points of `group` name.

    Raises:
        InputError: an entry point cannot be imported, or is not a `row_type`.
    """
    rows = []
    for entry in entry_points(group=group):
        place = f"the entry point {entry.name} = {entry.value} of the group {group}"
        try:
            row = entry.load()
        except Exception as fault:  # whatever the code of another package raises
            raise InputError(
                f"{place} cannot be imported ({type(fault).__name__}: {fault}); repair or uninstall the package that"
                " declares it"
            ) from fault
        if not isinstance(row, row_type):
            raise InputError(
                f"{place} is a {type(row).__name__}, not a {row_type.__name__}; uninstall the package that declares it,"
                " or report this to it"
            )
        rows.append(row)
    return rows

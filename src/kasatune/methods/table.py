"""The table of fine-tuning methods: one row each, by name, as plain data. Importing it imports no torch.

A method is one module with a `METHOD` object (see `kasatune.methods.shared.method`) and one row. The rows of kasatune's
methods are in `table_low_rank.py`, `table_starts_and_subspaces.py`, `table_mixtures.py` and
`table_adapters_and_weights.py`. Another package adds its methods by an entry point that names the row:

    [project.entry-points."kasatune.methods"]
    my-method = "my_package.row:INFO"          # INFO = MethodInfo(name="my-method", module="my_package.method", ...)

or at run time by `register_method(INFO)`, which worker processes of a comparison do not see.
"""

from __future__ import annotations

from kasatune.errors import InputError
from kasatune.io.entry_points import load_rows
from kasatune.methods.info import MethodInfo, Option
from kasatune.methods.table_adapters_and_weights import ROWS as ADAPTERS_AND_WEIGHTS
from kasatune.methods.table_low_rank import ROWS as LOW_RANK
from kasatune.methods.table_mixtures import ROWS as MIXTURES
from kasatune.methods.table_starts_and_subspaces import ROWS as STARTS_AND_SUBSPACES

__all__ = [
    "BASELINE_METHOD",
    "DEFAULT_METHOD",
    "ENTRY_POINTS",
    "METHODS",
    "REFERENCE_METHOD",
    "MethodInfo",
    "Option",
    "accepted_names",
    "canonical_name",
    "register_installed_methods",
    "register_method",
]

ENTRY_POINTS = "kasatune.methods"
DEFAULT_METHOD = "kasa"
"""The method of a recipe that names none."""
BASELINE_METHOD = "head"
"""The method that takes part in every comparison and in the demo: what does not beat it has learned nothing."""
REFERENCE_METHOD = "lora"
"""The method that a comparison tests the others against unless another is named."""

METHODS: dict[str, MethodInfo] = {
    row.name: row for row in (*LOW_RANK, *STARTS_AND_SUBSPACES, *MIXTURES, *ADAPTERS_AND_WEIGHTS)
}
_ALIASES: dict[str, str] = {alias: row.name for row in METHODS.values() for alias in row.aliases}


def canonical_name(name: str) -> str:
    """The name under which the table lists the method `name`; `name` itself if it is no alias."""
    return _ALIASES.get(name, name)


def accepted_names() -> list[str]:
    """Every name by which a recipe or a command can name a method, aliases included."""
    return [*METHODS, *_ALIASES]


def register_method(info: MethodInfo) -> None:
    """Add a method to the table; adding an equal row again changes nothing.

    Raises:
        InputError: another method has this name or one of these aliases.
    """
    for name in (info.name, *info.aliases):
        other = METHODS.get(canonical_name(name))
        if other is not None and other != info:
            raise InputError(f"method {info.name!r} of {info.module}: the name {name!r} belongs to {other.module}")
    METHODS[info.name] = info
    _ALIASES.update(dict.fromkeys(info.aliases, info.name))


def register_installed_methods() -> None:
    """Add the methods that installed packages declare as entry points of the group `kasatune.methods`.

    Raises:
        InputError: an entry point cannot be imported, or is not a `MethodInfo`.
    """
    for info in load_rows(ENTRY_POINTS, MethodInfo):
        register_method(info)


register_installed_methods()

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from kasatune.cli.arguments import Json
from kasatune.cli.console import print_json, print_table


class Kind(StrEnum):
    """The kinds of things that can be listed."""

    METHODS = "methods"
    TASKS = "tasks"
    RECIPES = "recipes"


def command(
    kind: Annotated[Kind, typer.Argument(help="What to list.", show_default=False)], json: Json = False
) -> None:
    """List the available methods, tasks or recipes.

    Example: kasatune list methods
    """
    rows = _ROWS[kind]()
    if json:
        print_json(rows)
        return
    shown = _SHOWN[kind]
    print_table(shown, [[_cell(row[column]) for column in shown] for row in rows])


def _cell(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list | tuple) else str(value)


def _methods() -> list[dict[str, Any]]:
    from dataclasses import asdict

    from kasatune.methods.table import METHODS

    rows = [{key: value for key, value in asdict(info).items() if key != "module"} for info in METHODS.values()]
    return [{**row, "title": METHODS[row["name"]].shown_title, "by": row["implemented_by"]} for row in rows]


def _tasks() -> list[dict[str, Any]]:
    from dataclasses import asdict

    from kasatune.data.tasks.table import TASKS

    hidden = ("module", "scorer")
    return [{key: value for key, value in asdict(info).items() if key not in hidden} for info in TASKS.values()]


def _recipes() -> list[dict[str, Any]]:
    from kasatune.recipes.catalogue import about, built_in
    from kasatune.recipes.schema import load_recipe

    rows = []
    for name, path in built_in().items():
        recipe = load_recipe(path)
        names = {"task": recipe.task.name, "method": recipe.method.name, "model": recipe.model.name}
        rows.append({"name": name, "about": about(path), **names, "path": str(path)})
    return rows


_ROWS: Mapping[Kind, Callable[[], list[dict[str, Any]]]] = {
    Kind.METHODS: _methods,
    Kind.TASKS: _tasks,
    Kind.RECIPES: _recipes,
}
_SHOWN: Mapping[Kind, tuple[str, ...]] = {
    Kind.METHODS: ("name", "aliases", "title", "trains", "bases", "by", "paper"),
    Kind.TASKS: ("name", "title", "kind", "source"),
    Kind.RECIPES: ("name", "about", "model"),
}

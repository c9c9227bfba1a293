"""The recipes that come with kasatune, found by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from kasatune.errors import RecipeError

_FOLDER = Path(__file__).with_name("library")


def built_in() -> dict[str, Path]:
    """The files of the built-in recipes, by names such as "glue-minilm/rte"."""
    return {path.relative_to(_FOLDER).with_suffix("").as_posix(): path for path in sorted(_FOLDER.rglob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file `name`, or the built-in recipe of that name.

    Raises:
        RecipeError: there is neither.
    """
    path = Path(name)
    if path.exists():
        return path
    recipes = built_in()
    if name.removesuffix(".yaml") in recipes:
        return recipes[name.removesuffix(".yaml")]
    near = difflib.get_close_matches(name.removesuffix(".yaml"), recipes, n=1)
    hint = f"did you mean the built-in recipe {near[0]}?" if near else "or choose from `kasatune list recipes`"
    raise RecipeError([f"no such file; check the path, {hint}"], name)


def about(path: Path) -> str:
    """The first comment line of a recipe file, which says what it is."""
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    return first.removeprefix("#").strip() if first.startswith("#") else ""

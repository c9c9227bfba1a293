"""The built-in recipes: list them, find one by name or path."""

from __future__ import annotations

from pathlib import Path

from kasatune.errors import RecipeError
from kasatune.recipes.messages import did_you_mean

_LIBRARY = Path(__file__).with_name("library")


def built_in() -> dict[str, Path]:
    """The files of the built-in recipes, by names such as "glue-minilm/rte"."""
    return {path.relative_to(_LIBRARY).with_suffix("").as_posix(): path for path in sorted(_LIBRARY.rglob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file `name`, or the built-in recipe of that name.

    Raises:
        RecipeError: neither exists.
    """
    path = Path(name)
    if path.exists():
        return path
    recipes = built_in()
    stem = name.removesuffix(".yaml")
    if stem in recipes:
        return recipes[stem]
    hint = did_you_mean(stem, recipes, "the built-in recipe ") or ", or choose from `kasatune list recipes`"
    raise RecipeError([f"no such file; check the path{hint}"], name)


def about(path: Path) -> str:
    """The description of a recipe: the first line of its file, if that is a comment."""
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    return first.removeprefix("#").strip() if first.startswith("#") else ""

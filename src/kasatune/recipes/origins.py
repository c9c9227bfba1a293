"""The complete recipe with every default, and where each value comes from: `kasatune show`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from kasatune.data.tasks.table import TASKS
from kasatune.methods.table import METHODS
from kasatune.recipes.schema import SECTIONS, Recipe, load_recipe
from kasatune.recipes.yaml_io import inline_yaml, parse_yaml, read_recipe_text

DEFAULT = "default"
_WIDTH = 44


class Value(NamedTuple):
    """One key of a recipe.

    Attributes:
        place: "section.key", or "output".
        value: its value.
        origin: where it comes from: the recipe, an override, the task, the method, another key, or "default".
    """

    place: str
    value: Any
    origin: str


def recipe_values(path: Path, overrides: Sequence[str] = ()) -> list[Value]:
    """Every key of a recipe in the order of the schema, those at their default included.

    Raises:
        RecipeError: the recipe has faults.
    """
    recipe = load_recipe(path, overrides)
    written = parse_yaml(read_recipe_text(path))
    given = {override.partition("=")[0] for override in overrides}
    values: list[Value] = []
    for section in SECTIONS:
        part = getattr(recipe, section)
        keys = type(part).model_fields if part is not None else ()
        written_values = part.model_dump() if part is not None else {}  # parts of a mixture as plain data
        values += [
            Value(
                f"{section}.{key}",
                written_values.get(key, _plain(getattr(part, key))),
                _origin(recipe, section, key, written, given),
            )
            for key in keys
        ]
    origin = "override" if "output" in given else "recipe" if "output" in written else "task and method"
    return [*values, Value("output", recipe.output, origin)]


def annotated_yaml(values: Sequence[Value]) -> str:
    """The recipe as YAML that can be trained, each value with its origin as a comment."""
    lines: list[str] = []
    section = ""
    for value in values:
        name, dot, key = value.place.partition(".")
        if dot and name != section:
            lines.append(f"{name}:")
        section = name
        text = f"  {inline_yaml(key, value.value)}" if dot else inline_yaml(name, value.value)
        lines.append(f"{text:<{_WIDTH}}  # {value.origin}")
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    """A mapping for a key that holds a section of its own."""
    return value.model_dump() if isinstance(value, BaseModel) else value


def _origin(recipe: Recipe, section: str, key: str, written: Mapping[str, Any], given: set[str]) -> str:
    place = f"{section}.{key}"
    if place in given or section in given or any(name.startswith(f"{place}.") for name in given):
        return "override"
    part = written.get(section)
    if isinstance(part, Mapping) and key in part:
        return "recipe"
    task = TASKS[recipe.task.name]
    if (section == "generation" and key in task.decoding) or (place == "task.loss_on" and task.kind == "generation"):
        return f"default of the task {task.name}"
    if place == "method.options" and METHODS[recipe.method.name].options:
        return f"default of the method {recipe.method.name}"
    if place == "training.warmup_ratio" and recipe.training.schedule == "constant":
        return "training.schedule"
    return DEFAULT

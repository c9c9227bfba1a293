"""Recipes: read from YAML, checked completely before anything is loaded, written with every default filled in.

A recipe has the sections `model`, `task`, `method`, `training`, `generation` for tasks that generate text, and
`preference` for the task of that name, and the key `output`. All faults of a recipe are reported at once. A recipe is
frozen once it is read.

`recipe_json_schema` gives the JSON schema for editors. `SECTIONS` gives the pydantic model of each section, whose
`model_fields` hold the description, type and default of each key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from kasatune.data.tasks.table import TASKS
from kasatune.errors import RecipeError
from kasatune.methods.table import DEFAULT_METHOD, METHODS, accepted_names, canonical_name
from kasatune.recipes.messages import sentences, show
from kasatune.recipes.method_section import MethodSection
from kasatune.recipes.mixture_checks import mixable_tasks
from kasatune.recipes.overrides import apply_overrides
from kasatune.recipes.sections import (
    SECTIONS,
    Count,
    GenerationSection,
    ModelSection,
    PartSection,
    PreferenceSection,
    Rate,
    RecipeSections,
    TaskSection,
    Text,
    TrainingSection,
)
from kasatune.recipes.validation import find_faults
from kasatune.recipes.yaml_io import dump_yaml, parse_yaml, read_recipe_text

__all__ = [
    "SECTIONS",
    "Count",
    "GenerationSection",
    "MethodSection",
    "ModelSection",
    "PartSection",
    "PreferenceSection",
    "Rate",
    "Recipe",
    "TaskSection",
    "Text",
    "TrainingSection",
    "apply_overrides",
    "load_recipe",
    "read_sections",
    "recipe_json_schema",
    "to_yaml",
]

_OF_SOME_TASKS = ("generation", "preference")


class Recipe(RecipeSections):
    """Everything that decides a run. `Recipe.model_validate(mapping)` checks it and raises RecipeError."""

    @classmethod
    def model_validate(cls, obj: Any, *, source: str = "recipe", check_inputs: bool = False, **_: Any) -> Self:
        """Build a recipe from a mapping, with defaults filled in.

        Args:
            obj: sections by name.
            source: where the mapping comes from, for the error message.
            check_inputs: also check that the folders, files and packages that it names exist on this machine.

        Raises:
            RecipeError: all faults at once.
        """
        if not isinstance(obj, Mapping):
            what = "it is empty" if obj is None else f"it holds {show(obj)}"
            raise RecipeError([f"not a recipe: {what}; write sections such as `task: {{name: glue/rte}}`"], source)
        values = _with_defaults(obj)
        faults: dict[str, str] = {}
        try:
            recipe = super().model_validate(values)
        except ValidationError as error:
            faults = sentences(error.errors(include_url=False), values, SECTIONS)
            recipe = super().model_validate(_without(values, faults))
        combined = find_faults(recipe, faults, check_inputs=check_inputs)
        if faults or combined:
            raise RecipeError([*faults.values(), *combined], source)
        return recipe


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, check_inputs: bool = False) -> Recipe:
    """Read the recipe in the YAML file `path`, changed by `overrides` such as "training.seed=1".

    Args:
        path: the file.
        overrides: "section.key=value" each, "task.parts[NAME].key=value" or "output=value", with the value in YAML.
        check_inputs: also check that the folders, files and packages that it names exist on this machine. Not for a
            recipe that was saved with a run: the run stays usable after its training data has moved.

    Raises:
        RecipeError: all faults of the file and of the overrides at once.
    """
    source = str(path)
    text = read_recipe_text(Path(path))
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise RecipeError([str(error)], source) from error
    if not isinstance(values, dict):
        return Recipe.model_validate(values, source=source)
    faults = apply_overrides(values, overrides)
    try:
        recipe = Recipe.model_validate(values, source=source, check_inputs=check_inputs)
    except RecipeError as error:
        raise RecipeError([*faults, *error.faults], source) from error
    if faults:
        raise RecipeError(faults, source)
    return recipe


def read_sections(
    path: Path, overrides: Sequence[str], names: Iterable[str], example: str
) -> tuple[dict[str, Any], list[str]]:
    """The sections of a YAML file of another kind than `Recipe`, changed by overrides, and the overrides' faults.

    Args:
        path: the file.
        overrides: "section.key=value" each.
        names: the sections; one that is missing or null is empty.
        example: one of them, for the message about a file without sections.

    Raises:
        RecipeError: the file cannot be read, or holds no sections.
    """
    source = str(path)
    try:
        values = parse_yaml(read_recipe_text(path))
    except ValueError as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError([str(error)], source) from error
    if not isinstance(values, dict):
        raise RecipeError([f"not a recipe: it holds {show(values)}; write sections such as `{example}:`"], source)
    faults = apply_overrides(values, overrides)
    sections = {str(name): {} if value is None else value for name, value in values.items()}
    for name in names:
        sections.setdefault(name, {})
    return sections, faults


def to_yaml(recipe: Recipe) -> str:
    """Write `recipe` as YAML with every default filled in and keys in a fixed order."""
    return dump_yaml(recipe.model_dump())


def recipe_json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of recipe files, for editors that complete and check YAML.

    It holds the type, limits, default and description of every key, the names of tasks and methods, and the options of
    each method. What several keys must satisfy together is checked by `kasatune plan` and `kasatune train` alone.
    """
    schema = RecipeSections.model_json_schema()
    schema |= {"title": "kasatune recipe", "description": "Everything that decides a fine-tuning run."}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["required"] = ["model", "task"]
    sections = schema["$defs"]
    sections["TaskSection"]["properties"]["name"]["enum"] = list(TASKS)
    sections["PartSection"]["properties"]["name"]["enum"] = mixable_tasks()
    method = sections["MethodSection"]
    method["properties"]["name"]["enum"] = accepted_names()
    method["allOf"] = [
        {
            "if": {"properties": {"name": {"enum": [info.name, *info.aliases]}}, "required": ["name"]},
            "then": {"properties": {"options": _options_json_schema(info.name)}},
        }
        for info in METHODS.values()
    ]
    return schema


def _options_json_schema(method: str) -> dict[str, Any]:
    options = METHODS[method].options
    properties = {option.name: option.json_schema() for option in options}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _with_defaults(obj: Mapping[Any, Any]) -> dict[str, Any]:
    """`obj` with text keys, an empty mapping for each section left out, and a default output directory."""
    values = {str(key): value for key, value in obj.items()}
    for section in SECTIONS:
        given = values.get(section)
        values[section] = {str(key): value for key, value in given.items()} if isinstance(given, Mapping) else given
        if given is None and section not in _OF_SOME_TASKS:
            values[section] = {}
    _complete_generation(values)
    if values.get("output") is None:
        task, method = (
            section.get("name") if isinstance(section, dict) else None for section in (values["task"], values["method"])
        )
        values["output"] = f"runs/{str(task).rpartition('/')[2]}-{canonical_name(str(method or DEFAULT_METHOD))}"
    training = values["training"]
    if isinstance(training, dict) and training.get("schedule") == "constant":
        training.setdefault("warmup_ratio", 0.0)
    return values


def _complete_generation(values: dict[str, Any]) -> None:
    """Fill in decoding defaults, the loss on completions and a preference loss, where the task has them."""
    task = values["task"]
    info = TASKS.get(str(task.get("name"))) if isinstance(task, dict) else None
    if info is None or info.kind != "generation":
        return
    if info.compares_with_reference:
        values["preference"] = {} if values["preference"] is None else values["preference"]
    if task.get("loss_on") is None:
        values["task"] = {**task, "loss_on": "completion"}
    given = values["generation"]
    if given is not None and not isinstance(given, dict):
        return
    values["generation"] = {**info.decoding, **(given or {})}
    if isinstance(task.get("parts"), list):
        parts = [_complete_part(part, given or {}) for part in task["parts"]]
        values["task"] = {**values["task"], "parts": parts}


def _complete_part(part: Any, given: Mapping[str, Any]) -> Any:
    """A part of a mixture with its decoding: as given for the part, for the recipe, or the default of its task."""
    info = TASKS.get(str(part.get("name"))) if isinstance(part, Mapping) else None
    decoding = part.get("generation") if info is not None else None
    if info is None or (decoding is not None and not isinstance(decoding, Mapping)):
        return part
    return {**part, "generation": {**info.decoding, **given, **(decoding or {})}}


def _without(values: dict[str, Any], faults: Mapping[str, str]) -> dict[str, Any]:
    """`values` without its faulty keys, so that the remaining keys can be checked too."""
    rest = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for place in faults:
        section, _, key = place.partition(".")
        if key:
            rest[section].pop(key, None)
        elif section in SECTIONS:
            rest[section] = {}
        else:
            rest.pop(section)
    rest.setdefault("output", "unknown")
    for section in ("model", "task"):
        rest[section].setdefault("name", "unknown")
    return rest

"""Overrides of a recipe: section.key=value, method.options.key=value, task.parts[NAME].key=value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from kasatune.methods.table import DEFAULT_METHOD, canonical_name
from kasatune.recipes.messages import show
from kasatune.recipes.sections import SECTIONS
from kasatune.recipes.yaml_io import parse_yaml

_NESTED = ("options", "calibration")
"""Keys of `method` that hold mappings, whose keys an override can name."""
_PART = re.compile(r"task\.parts\[(?P<name>[^\]]+)\]\.(?P<key>[a-z_]+)(?:\.(?P<inner>[a-z_]+))?")


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Put each override into `values`, and return one sentence for each that is malformed.

    An override of `method.name` drops the options of the method that it replaces. NAME of `task.parts[NAME]` is the
    title of a part, or its task where it has none; a key of a part may be `generation.key`.

    Args:
        values: the sections of a recipe, changed in place.
        overrides: "section.key=value" each, with the value in YAML.
    """
    faults: list[str] = []
    _drop_options_of_replaced_method(values, overrides)
    given: dict[str, str] = {}
    for override in overrides:
        place, equals, text = override.partition("=")
        part = _PART.fullmatch(place)
        if not equals or (part is None and not _is_place(place)):
            faults.append(f"override {show(override)}: must be section.key=value, for example training.seed=1")
            continue
        if place in given:
            faults.append(f"override {show(override)}: {place} was already given as {show(given[place])}; keep one")
            continue
        given[place] = text
        try:
            value = parse_yaml(text)
        except ValueError as error:
            faults.append(f"override {show(override)}: the value is not YAML ({error}); quote it")
            continue
        if part is not None:
            fault = _set_in_part(values, part["name"], part["key"], part["inner"], value)
            faults += [f"override {show(override)}: {fault}"] if fault else []
        else:
            _set(values, place, value)
    return faults


def _is_place(place: str) -> bool:
    """Whether `place` is section.key, method.options.key, method.calibration.key or a key without a section."""
    section, dot, key = place.partition(".")
    outer, _, inner = key.partition(".")
    nested = "." in key and (section != "method" or outer not in _NESTED or not inner or "." in inner)
    return (
        bool(section)
        and "[" not in key
        and not (dot and not key)
        and not nested
        and not (section in SECTIONS and not key)
    )


def _set(values: dict[str, Any], place: str, value: Any) -> None:
    section, _, key = place.partition(".")
    outer, _, inner = key.partition(".")
    if inner:
        _set_nested(values, outer, inner, value)
    elif not key:
        values[section] = value
    elif isinstance(values.get(section), dict):
        values[section][key] = value
    elif values.get(section) is None:
        values[section] = {key: value}


def _set_nested(values: dict[str, Any], outer: str, inner: str, value: Any) -> None:
    """Set method.OUTER.INNER; a calibration given as its source alone becomes a mapping."""
    method = values.get("method") or {}
    if not isinstance(method, dict):
        return
    before = method.get(outer)
    if outer == "calibration" and isinstance(before, str):
        before = {"source": before}
    if isinstance(before, dict | None):
        values["method"] = {**method, outer: {**(before or {}), inner: value}}


def _set_in_part(values: dict[str, Any], name: str, key: str, inner: str | None, value: Any) -> str | None:
    """Set task.parts[NAME].KEY or task.parts[NAME].KEY.INNER, and return what is wrong with the override, or None."""
    task = values.get("task")
    parts = task.get("parts") if isinstance(task, dict) else None
    if not isinstance(task, dict) or not isinstance(parts, list):
        return "the recipe has no task.parts; only a mixture of tasks has parts"
    names = [part.get("title") or part.get("name") if isinstance(part, dict) else None for part in parts]
    if names.count(name) != 1:
        known = _listed(names)
        if name in names:
            return f"{names.count(name)} parts are called {name}; give each another title in the recipe"
        return f"no part is called {name}; the parts are {known}"
    place = names.index(name)
    part = parts[place]
    if inner is not None:
        before = part.get(key)
        if key != "generation" or not isinstance(before, dict | None):
            return f"{key} has no keys; write task.parts[{name}].{key}=value"
        value = {**(before or {}), inner: value}
    changed = [*parts]
    changed[place] = {**part, key: value}
    values["task"] = {**task, "parts": changed}
    return None


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(str(name) for name in names if name is not None) or "without names"


def _drop_options_of_replaced_method(values: dict[str, Any], overrides: Sequence[str]) -> None:
    method = values.get("method")
    names = [text for place, _, text in (override.partition("=") for override in overrides) if place == "method.name"]
    if not isinstance(method, dict) or not names:
        return
    if canonical_name(names[0]) != canonical_name(str(method.get("name", DEFAULT_METHOD))):
        values["method"] = {key: value for key, value in method.items() if key != "options"}

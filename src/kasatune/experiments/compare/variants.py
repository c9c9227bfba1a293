"""What is compared: methods, and variants of a method by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kasatune.errors import InputError
from kasatune.methods.table import METHODS
from kasatune.recipes.messages import did_you_mean, show
from kasatune.recipes.schema import MethodSection, Recipe
from kasatune.recipes.yaml_io import parse_yaml


@dataclass(frozen=True)
class Variant:
    """A method with the settings that make it a variant of its own.

    Attributes:
        text: as it was written: "kasa", or "kasa:convention=authors:r=16".
        method: the method's name.
        settings: keys of the recipe's `method` section, or of the method's own options, with their values.
    """

    text: str
    method: str
    settings: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The method's name in the field, with the settings."""
        info = METHODS[self.method]
        return f"{info.shown_title} ({self.settings_text})" if self.settings else info.shown_title

    @property
    def settings_text(self) -> str:
        """The settings in words: "convention=authors, r=16"."""
        return ", ".join(self.text.split(":")[1:])

    def apply(self, recipe: Recipe, training: Mapping[str, Any], method: Mapping[str, Any]) -> Recipe:
        """`recipe` with this method in the place of its own, everything else alike.

        Args:
            recipe: of the task; what its `method` section says holds for every method that reads it.
            training: keys of the `training` section to change.
            method: keys of the `method` section to change.

        Raises:
            RecipeError: the settings are not those of this method, or out of their range.
        """
        values = recipe.model_dump()
        section = dict(values["method"])
        if section.get("name") != self.method:
            section.pop("options", None)
        section["name"] = self.method
        for key, value in {**self.settings, **method}.items():
            if key in MethodSection.model_fields:
                section[key] = value
            else:
                section["options"] = {**(section.get("options") or {}), key: value}
        values["method"] = section
        values["training"] = {**values["training"], **training}
        return Recipe.model_validate(values, source=self.text)


def parse_variants(text: str) -> list[Variant]:
    """The variants in "kasa,kasa:convention=authors,lora".

    Raises:
        InputError: a method is unknown, a setting is no key=value, or a variant is given twice.
    """
    found = [_parse(part.strip()) for part in text.split(",") if part.strip()]
    if not found:
        raise InputError(f"--methods: {text!r} received; name one method at least, for example kasa,lora")
    _refuse_twice("--methods", [variant.text for variant in found])
    return found


def keys_read(method: str) -> tuple[str, ...]:
    """The keys of a recipe's `method` section that a method reads, besides its name and its own options."""
    return METHODS[method].uses


def parse_seeds(text: str) -> list[int]:
    """The seeds in "0,1,2".

    Raises:
        InputError: one is no whole number from 0 to 4294967295, or is given twice.
    """
    seeds = []
    for part in text.split(","):
        if not part.strip().isdecimal() or len(part.strip()) > len(str(2**32)) or int(part) >= 2**32:
            raise InputError(f"--seeds: {show(part.strip())} received; give whole numbers from 0 on, for example 0,1,2")
        seeds.append(int(part))
    _refuse_twice("--seeds", [str(seed) for seed in seeds])
    return seeds


def _parse(text: str) -> Variant:
    method, *settings = text.split(":")
    if method not in METHODS:
        near = did_you_mean(method, METHODS) or f"; choose from {', '.join(METHODS)}"
        raise InputError(f"--methods: {method!r} is not a method{near}")
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals or not value or key == "name":
            raise InputError(
                f"--methods: {setting!r} in {text!r} received; a variant is written method:key=value, "
                "for example kasa:convention=authors"
            )
        if key in values:
            raise InputError(f"--methods: {key} is given twice in {text!r}; keep one")
        try:
            values[key] = parse_yaml(value)
        except ValueError as fault:
            raise InputError(f"--methods: {setting!r} in {text!r}: the value is not YAML ({fault})") from fault
    return Variant(text, method, values)


def _refuse_twice(option: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{option}: {', '.join(twice)} is given twice; keep one")

"""Parse `--methods` and `--seeds`: method variants such as kasa:convention=authors, and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kasatune.errors import InputError
from kasatune.methods.table import METHODS, accepted_names, canonical_name
from kasatune.recipes.messages import did_you_mean, show
from kasatune.recipes.schema import MethodSection, Recipe
from kasatune.recipes.yaml_io import parse_yaml


@dataclass(frozen=True)
class Variant:
    """A method with settings that differ from the recipe's.

    Attributes:
        text: the variant as written: "kasa", or "kasa:convention=authors:r=16".
        method: name of the method.
        settings: values for keys of the recipe's `method` section or of the method's own options.
    """

    text: str
    method: str
    settings: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The method's usual name, with the settings."""
        info = METHODS[self.method]
        return f"{info.shown_title} ({self.settings_text})" if self.settings else info.shown_title

    @property
    def settings_text(self) -> str:
        """The settings as text: "convention=authors, r=16"."""
        return ", ".join(self.text.split(":")[1:])

    def apply(self, recipe: Recipe, training: Mapping[str, Any], method: Mapping[str, Any]) -> Recipe:
        """Return `recipe` with this method and unchanged otherwise.

        Args:
            recipe: recipe of the task; its `method` section applies to every method that reads the key.
            training: keys of the `training` section to override.
            method: keys of the `method` section to override.

        Raises:
            RecipeError: the method does not have these settings, or a value is out of range.
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
    """Parse a list such as "kasa,kasa:convention=authors,lora".

    Raises:
        InputError: a method is unknown, a setting is not key=value, or a variant is given twice.
    """
    variants = [_parse(part.strip()) for part in text.split(",") if part.strip()]
    if not variants:
        raise InputError(f"--methods: {text!r} received; name at least one method, for example kasa,lora")
    _refuse_duplicates("--methods", [variant.text for variant in variants])
    return variants


def keys_read(method: str) -> tuple[str, ...]:
    """The keys of a recipe's `method` section that a method reads, besides `name` and its own options."""
    return METHODS[method].uses


def parse_seeds(text: str) -> list[int]:
    """Parse a list such as "0,1,2".

    Raises:
        InputError: a seed is not an integer from 0 to 4294967295, or is given twice.
    """
    seeds = []
    for part in text.split(","):
        if not part.strip().isdecimal() or len(part.strip()) > len(str(2**32)) or int(part) >= 2**32:
            raise InputError(
                f"--seeds: {show(part.strip())} received; give integers from 0 to 4294967295, for example 0,1,2"
            )
        seeds.append(int(part))
    _refuse_duplicates("--seeds", [str(seed) for seed in seeds])
    return seeds


def _parse(text: str) -> Variant:
    written, *settings = text.split(":")
    method = canonical_name(written)
    if method not in METHODS:
        near = did_you_mean(method, accepted_names()) or f"; choose from {', '.join(METHODS)}"
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
    return Variant(":".join([method, *settings]), method, values)


def _refuse_duplicates(option: str, names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"{option}: {', '.join(repeated)} is given twice; keep one")

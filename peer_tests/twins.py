"""Test cases for this project's tuners, derived from the LoRA cases in the parameter lists of PEFT's tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftConfig

from kasatune import KasaConfig
from kasatune.methods.bottleneck import BottleneckConfig
from kasatune.mixtures import MaloraConfig, MiloraMoeConfig, MoeLoraConfig, MorConfig

Kwargs = dict[str, Any]

_CLASS_NAMES = ("config_cls", "config_class")
_INITIAL = "init_lora_weights"


@dataclass(frozen=True)
class Twin:
    """A tuner of this project, and how a LoRA case becomes a case for it.

    Args:
        name: in the table of results.
        config_class: its configuration.
        settings: settings that every case gets.
        plain_only: only for LoRA cases without settings of LoRA alone.
        custom_only: only for PEFT's small models of a few layers, not for transformers.
        transformers_only: the opposite.
        translate: changes the keyword arguments of LoraConfig to those of `config_class`.
    """

    name: str
    config_class: type[PeftConfig]
    settings: Kwargs
    translate: Callable[[Kwargs], Kwargs]
    plain_only: bool = True
    custom_only: bool = False
    transformers_only: bool = False


def _to_kasa(settings: Kwargs) -> Kwargs:
    return settings


def _to_mixture(settings: Kwargs) -> Kwargs:
    return {"num_experts": 3, **_without_defaults(settings)}


def _without_defaults(settings: Kwargs) -> Kwargs:
    """The settings, without those that only state a default of LoRA which a mixture has no setting for."""
    known = {field.name for field in dataclasses.fields(MoeLoraConfig)}
    default = LoraConfig()
    return {key: value for key, value in settings.items() if key in known or value != getattr(default, key, ...)}


def _to_bottleneck(settings: Kwargs) -> Kwargs:
    """The same layers as places on their outputs; without layers, the places of the architecture."""
    shared = ("task_type", "modules_to_save", "base_model_name_or_path", "inference_mode", "init_weights")
    targets = settings.get("target_modules")
    names = [targets] if isinstance(targets, str) else targets
    places = {} if not names else {"places": dict.fromkeys(names, "output")}
    return {"r": 4, **places, **{key: value for key, value in settings.items() if key in shared}}


TWINS = (
    Twin("KaSA", KasaConfig, {}, _to_kasa, plain_only=False),
    Twin("KaSA, fold", KasaConfig, {"truncation": "fold"}, _to_kasa),
    Twin("KaSA, drop 0", KasaConfig, {"drop": 0}, _to_kasa, custom_only=True),
    Twin("KaSA, dense, authors", KasaConfig, {"core": "dense", "convention": "authors"}, _to_kasa, custom_only=True),
    Twin("bottleneck", BottleneckConfig, {}, _to_bottleneck),
    Twin("MoE-LoRA", MoeLoraConfig, {}, _to_mixture),
    Twin("MoR", MorConfig, {}, _to_mixture),
    Twin("MALoRA", MaloraConfig, {}, _to_mixture),
    Twin("MiLoRA (mixture)", MiloraMoeConfig, {}, _without_defaults, transformers_only=True),
)


@dataclass(frozen=True)
class Case:
    """One entry of a parameter list.

    Args:
        twin: name of the tuner.
        values: the values of the entry.
    """

    twin: str
    values: tuple[Any, ...]


def twins_of(argnames: Sequence[str], argvalues: Iterable[Any]) -> list[Case]:
    """The cases for this project's tuners that belong to the LoRA cases of a parameter list.

    Args:
        argnames: names of the parameters, as in `pytest.mark.parametrize`.
        argvalues: its entries: tuples, single values or `pytest.param`.
    """
    cases: list[Case] = []
    for entry in argvalues:
        values = _values(entry, len(argnames))
        for twin in TWINS:
            translated = _translated(twin, argnames, values)
            if translated is not None:
                cases.append(Case(twin.name, translated))
    return cases


def _values(entry: Any, count: int) -> tuple[Any, ...]:
    if hasattr(entry, "values") and hasattr(entry, "marks"):  # pytest.param
        return tuple(entry.values)
    return (entry,) if count == 1 else tuple(entry)


def _translated(twin: Twin, argnames: Sequence[str], values: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The entry with LoraConfig and its keyword arguments replaced; None if it is no LoRA case for this twin."""
    named = dict(zip(argnames, values, strict=False))
    if not any(_is_lora(name, value) for name, value in named.items()):
        return None
    settings = list(_settings(named))
    if (twin.settings and not settings) or (twin.plain_only and not all(map(_is_plain, settings))):
        return None
    is_custom = "test_name" in named
    built = [value for value in values if type(value) is LoraConfig]
    if (
        (twin.custom_only and not is_custom)
        or (twin.transformers_only and is_custom)
        or not all(_is_plain(_differing(config)) for config in built)
    ):
        return None
    changed: list[Any] = []
    for name, value in named.items():
        if name in _CLASS_NAMES:
            changed.append(twin.config_class)
        elif name.endswith(("kwargs", "kwargs_1", "kwargs_2")) and isinstance(value, dict):
            changed.append(_keywords(twin, value, small=is_custom))
        elif type(value) is LoraConfig:
            settings = _keywords(twin, _differing(value), small=True)
            changed.append(twin.config_class(**settings))
        elif name == "test_name":
            changed.append(f"{twin.name} of {value}")
        else:
            changed.append(value)
    return tuple(changed)


def _is_lora(name: str, value: Any) -> bool:
    return (name in _CLASS_NAMES and value is LoraConfig) or type(value) is LoraConfig


def _settings(named: Kwargs) -> Iterator[Kwargs]:
    for value in named.values():
        if isinstance(value, dict):
            yield value
        elif type(value) is LoraConfig:
            yield _differing(value)


def _is_plain(settings: Kwargs) -> bool:
    known = {field.name for field in dataclasses.fields(KasaConfig)}
    return all(key in known or (key == _INITIAL and isinstance(value, bool)) for key, value in settings.items())


def _keywords(twin: Twin, settings: Kwargs, *, small: bool) -> Kwargs:
    """The keyword arguments of the twin's configuration; `small` models have layers of two rows, so r = 1."""
    settings = dict(settings)
    if isinstance(settings.get(_INITIAL), bool):
        settings["init_weights"] = settings.pop(_INITIAL)
    if small:
        settings.setdefault("r", 1)
    return {**twin.translate(settings), **twin.settings}


def _differing(config: LoraConfig) -> Kwargs:
    """The settings of a configuration that are not LoraConfig's defaults."""
    default = LoraConfig()
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    derived = ("peft_type", "auto_mapping", "peft_version", "runtime_config")
    return {key: value for key, value in values.items() if key not in derived and value != getattr(default, key)}

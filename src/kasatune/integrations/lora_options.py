"""A KasaConfig from the LoRA options of another trainer, and the settings that only KaSA has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import peft

from kasatune.errors import InputError
from kasatune.kasa import KasaConfig


def kasa_config(lora: Mapping[str, Any], settings: Mapping[str, Any]) -> KasaConfig:
    """The configuration of a KaSA adapter in a trainer that has options for LoRA.

    Args:
        lora: what the trainer would pass to peft.LoraConfig. An option that KaSA does not have, such as `use_dora`, may
            be there with LoraConfig's default.
        settings: fields of KasaConfig that are not in `lora`, such as `beta`, `gamma` or `truncate_by`.

    Raises:
        InputError: a setting that the trainer's own options decide, or a value out of its range.
        UnknownSettingError: an option of LoRA with a value that KaSA has no counterpart for, or an unknown setting.
    """
    decided = sorted(settings.keys() & lora.keys())
    if decided:
        raise InputError(
            f"KaSA's settings name {', '.join(decided)}, which the trainer's own options for LoRA decide: remove "
            f"{'it' if len(decided) == 1 else 'them'} there and set the options of LoRA"
        )
    shared = {name: value for name, value in lora.items() if name in _FIELDS or value != _LORA_DEFAULTS.get(name)}
    return KasaConfig(**shared, **settings)


_FIELDS = {field.name for field in dataclasses.fields(KasaConfig) if field.init}
_LORA_DEFAULTS = {field.name: field.default for field in dataclasses.fields(peft.LoraConfig)}

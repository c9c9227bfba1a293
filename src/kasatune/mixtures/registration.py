"""Register the mixtures of LoRA experts as PEFT types, and the optimizer-step hook of their balance losses."""

from __future__ import annotations

from kasatune.kasa.registration import add_type
from kasatune.mixtures.balance import install_step_hook
from kasatune.mixtures.config import MaloraConfig, MiloraMoeConfig, MoeLoraConfig, MorConfig
from kasatune.mixtures.model import MaloraModel, MiloraMoeModel, MoeLoraModel, MorModel

TYPES = (
    (MoeLoraConfig, MoeLoraModel),
    (MorConfig, MorModel),
    (MaloraConfig, MaloraModel),
    (MiloraMoeConfig, MiloraMoeModel),
)


def register() -> None:
    """Add the PEFT types; a second call changes nothing.

    Raises:
        InputError: this version of PEFT defines a type of such a name itself.
    """
    added = [add_type(config.TYPE, config, model) for config, model in TYPES]
    if any(added):
        install_step_hook()

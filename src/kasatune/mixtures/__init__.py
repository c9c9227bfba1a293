"""Mixtures of LoRA experts as PEFT tuners: routed by token (MoE-LoRA, MoR, MALoRA) or by prompt (MiLoRA)."""

from __future__ import annotations

# First: importing peft runs the registration, which imports the modules below from this partly initialized package.
import peft  # noqa: F401  # isort: skip

from kasatune.mixtures.balance import balance_loss, record_routing
from kasatune.mixtures.config import MaloraConfig, MiloraMoeConfig, MixtureConfig, MoeLoraConfig, MorConfig
from kasatune.mixtures.forward_pass import labels_of_batch

__all__ = [
    "MaloraConfig",
    "MiloraMoeConfig",
    "MixtureConfig",
    "MoeLoraConfig",
    "MorConfig",
    "balance_loss",
    "labels_of_batch",
    "record_routing",
]

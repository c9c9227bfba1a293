"""Refuse settings that a PEFT configuration does not have: settings of LoraConfig alone, and misspelled names."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import peft

from kasatune.errors import UnknownSettingError

_Config = TypeVar("_Config")

LORA_ONLY: Mapping[str, str] = {
    "init_lora_weights": (
        "a KaSA adapter starts at B = 0, with the d smallest singular triplets of W dropped. Leave it out; drop=0 "
        "starts at the unchanged base, sigma_init sets sigma, and truncate_by='activation' chooses what is dropped by "
        "the base's activations"
    ),
    "use_dora": (
        "DoRA rescales the rows of W + s B A, and a KaSA update is a sum of matrices. Leave it out, or use "
        "peft.LoraConfig(use_dora=True), the method `dora`"
    ),
    "lora_bias": (
        "B of a KaSA adapter has no bias, so that an export to LoRA of rank 2r is exact. Leave it out; bias='all' or "
        "bias='lora_only' trains the biases of the base"
    ),
    "trainable_token_indices": (
        "a KaSA adapter does not hold single rows of an embedding. Use modules_to_save=['embed_tokens'] to train and "
        "save the embedding, or a separate peft.LoraConfig adapter with trainable_token_indices"
    ),
    "target_parameters": (
        "a KaSA adapter is put on linear layers, not on parameters such as stacked experts. Name layers in "
        "target_modules, and adapt the parameters with a separate peft.LoraConfig adapter"
    ),
    "layer_replication": (
        "KaSA does not build a larger model out of copies of its blocks. Leave it out and adapt the model as it is, or "
        "use peft.LoraConfig(layer_replication=...)"
    ),
    "ensure_weight_tying": (
        "KaSA does not copy an adapter between tied layers; a tied weight is adapted where target_modules names it, "
        "and is not changed elsewhere. Leave it out, or use peft.LoraConfig(ensure_weight_tying=True)"
    ),
    "loftq_config": (
        "LoftQ replaces the quantized base weight, and KaSA keeps it. Leave it out; tail_source='checkpoint' computes "
        "the tail of a quantized base from the full-precision checkpoint"
    ),
    "eva_config": (
        "KaSA does not initialize A from activations. Leave it out, or use peft.LoraConfig with EVA, the method `eva`"
    ),
    "corda_config": (
        "KaSA does not initialize from the covariance of activations. Use truncate_by='activation', or "
        "peft.LoraConfig with CorDA, the method `corda`"
    ),
    "lora_ga_config": (
        "KaSA starts from gradients in recipes only, with method.init: gradient. Leave it out, or use peft.LoraConfig "
        "with LoRA-GA, the method `lora-ga`"
    ),
    "kasa_config": (
        "that is an option of peft.LoraConfig, for PEFT's own KaSA, the method `peft-kasa`. Here beta, gamma and the "
        "other settings are fields of kasatune.KasaConfig itself"
    ),
    "use_qalora": "QA-LoRA groups the inputs of A to quantize them. Leave it out; KaSA adapts quantized bases as is",
    "qalora_group_size": "it belongs to QA-LoRA. Leave it out; KaSA adapts quantized bases as is",
    "alora_invocation_tokens": (
        "a KaSA adapter acts on every token of a sequence. Leave it out, or use peft.LoraConfig with "
        "alora_invocation_tokens"
    ),
    "velora_config": "KaSA keeps the inputs of A. Use gradient checkpointing, or peft.LoraConfig with VeLoRA",
    "monteclora_config": "KaSA's factors are not sampled. Leave it out, or use peft.LoraConfig with MonteCLoRA",
    "use_bdlora": "the factors of KaSA are not block-diagonal. Leave it out, or use peft.LoraConfig(use_bdlora=...)",
    "arrow_config": (
        "one KaSA adapter is active at a time, so there is nothing to route. Export each adapter with "
        "export_adapter(model, out, to='lora') and route the LoRA adapters with PEFT"
    ),
    "megatron_config": "KaSA has no layers for Megatron. Leave it out, or use peft.LoraConfig",
    "megatron_core": "KaSA has no layers for Megatron. Leave it out, or use peft.LoraConfig",
    "runtime_config": (
        "KaSA has no settings that change after loading, such as ephemeral_gpu_offload. Leave it out; layers that "
        "accelerate offloads are read one at a time"
    ),
}
"""Settings of LoraConfig that KasaConfig does not have: why, and what to use instead."""


_SYNONYMS = {"rank": "r", "lora_r": "r", "lora_rank": "r", "targets": "target_modules"}


def refuse_unknown_settings(reasons: Mapping[str, str]) -> Callable[[type[_Config]], type[_Config]]:
    """A decorator for configurations: an unknown keyword argument raises an error that explains it.

    Args:
        reasons: why a known setting of another configuration is missing, and what to use instead, by its name.
    """

    def decorate(config_class: type[_Config]) -> type[_Config]:
        initialize: Any = config_class.__init__

        @functools.wraps(initialize)
        def checked(self: _Config, *args: Any, **settings: Any) -> None:
            known = set(_names(type(self)))
            unknown = [name for name in settings if name not in known]
            if unknown:
                raise UnknownSettingError("; ".join(_fault(type(self), name, reasons) for name in unknown))
            initialize(self, *args, **settings)

        config_class.__init__ = checked
        return config_class

    return decorate


def _names(config_class: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(config_class) if field.init]


def _fault(config_class: type[object], name: str, reasons: Mapping[str, str]) -> str:
    # PEFT recognizes settings of later versions in a saved configuration by these words.
    start = f"{config_class.__name__} got an unexpected keyword argument {name!r}"
    if name in reasons:
        return f"{start}: {reasons[name]}"
    if name in _names(peft.LoraConfig):
        return f"{start}, which is a setting of peft.LoraConfig alone: leave it out, or use peft.LoraConfig"
    known = _names(config_class)
    near = difflib.get_close_matches(name.lower(), [*known, *reasons], n=1, cutoff=0.6)
    meant = _SYNONYMS.get(name.lower(), near[0] if near else None)
    if meant is None:
        shared = _names(peft.PeftConfig)
        return f"{start}; it has: {', '.join(other for other in known if other not in shared)}"
    return f"{start}; did you mean {meant!r}?" + (
        f" It is no setting either: {reasons[meant]}" if meant in reasons else ""
    )

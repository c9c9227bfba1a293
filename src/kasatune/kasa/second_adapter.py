"""A second KaSA adapter: with the tails of an equal one, or as the reference of a TRL trainer (DPO, GRPO).

TRL's DPO, KTO, GRPO and RLOO trainers compare the policy with a reference. For a PeftModel they add an adapter named
"ref" and copy into it the parameters whose names contain ".default."; the names of KaSA's parameters end in ".default".
For a `peft_config` they switch the adapter off, which gives the untruncated base instead of the initial policy. So a
KaSA adapter that such a trainer adds as "ref" takes all tensors of the policy here, and a policy that such a trainer
creates from a `peft_config` gets its "ref" adapter here. The trainers use an adapter of this name where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from kasatune.kasa.call_stack import in_loader, reference_trainer
from kasatune.kasa.config import KasaConfig
from kasatune.kasa.layer import TRAINED, KasaLayer
from kasatune.kasa.targets import Target
from kasatune.linalg import TailSVD

REFERENCE = "ref"
"""The name of the adapter that TRL's trainers use as their reference."""

_FROM_BASE = ("base_fingerprint", "calibration_used", "tail_source_used", "fan_in_fan_out")
_NOT_COMPARED = frozenset({*_FROM_BASE, "inference_mode", "base_model_name_or_path"})


def equal_adapter(
    adapter_name: str, configs: Mapping[str, KasaConfig], targets: Sequence[Target], *, empty: bool
) -> str | None:
    """The name of an attached adapter with the same configuration, whose tails a new adapter may take; None if none.

    Args:
        adapter_name: the new adapter.
        configs: the configurations of all adapters, the new one included.
        targets: of the new adapter.
        empty: whether the new adapter is created on the meta device.
    """
    if empty or in_loader():
        return None
    config = configs[adapter_name]
    for name, other in configs.items():
        if name != adapter_name and _is_equal(config, other) and _has_tails(name, targets):
            return name
    return None


def tails_of(adapter_name: str, targets: Sequence[Target]) -> dict[str, TailSVD]:
    """Copies of the tails of an attached adapter, by layer name; the singular values are in U."""
    tails = {}
    for target in targets:
        layer = target.module
        assert isinstance(layer, KasaLayer)
        tail_U, tail_V = (t[adapter_name].detach().clone() for t in (layer.kasa_tail_U, layer.kasa_tail_V))
        tails[target.name] = TailSVD(tail_U, torch.ones(tail_U.shape[1]).to(tail_U), tail_V)
    return tails


def copy_statements_about_base(source: KasaConfig, config: KasaConfig) -> None:
    """Copy what a configuration states about the base from that of the adapter whose tails are taken."""
    for name in _FROM_BASE:
        setattr(config, name, getattr(source, name))


def copy_factors(model: nn.Module, source: str, adapter_name: str) -> None:
    """Copy A, B and sigma of an adapter into another one, in their dtype."""
    for layer in model.modules():
        if isinstance(layer, KasaLayer) and source in layer.kasa_A and adapter_name in layer.kasa_A:
            for kind in TRAINED:
                factors: Any = getattr(layer, kind)
                factors[adapter_name].data = factors[source].detach().clone()


def is_reference(adapter_name: str) -> bool:
    """Whether a TRL trainer is adding this adapter as its reference."""
    return adapter_name == REFERENCE and reference_trainer() is not None


def needs_reference(configs: Mapping[str, KasaConfig], model: nn.Module) -> bool:
    """Whether a TRL trainer creates the only adapter of `model`, one that drops a component of its base.

    False for a trainer with a model or weight for its reference that make the adapter unnecessary.
    """
    trainer = reference_trainer() if len(configs) == 1 else None
    if trainer is None or trainer.get("ref_model") is not None:
        return False
    if getattr(trainer.get("args"), "beta", None) == 0.0:  # no divergence from a reference in the loss
        return False
    adapter_name = next(iter(configs))
    layers = (layer for layer in model.modules() if isinstance(layer, KasaLayer))
    return any(adapter_name in layer.settings and layer.settings[adapter_name].drop for layer in layers)


def _is_equal(config: KasaConfig, other: KasaConfig) -> bool:
    if config is other:
        return True
    if config.saved or other.saved or _calibration(config) != _calibration(other):
        return False
    return not (config.calibrate_later or other.calibrate_later) and _settings(config) == _settings(other)


def _calibration(config: KasaConfig) -> str | None:
    """What identifies the calibration of a configuration; that of an attached adapter no longer holds its moments."""
    return config.calibrated_as if config.activations is None else config.activations.identity


def _settings(config: KasaConfig) -> dict[str, Any]:
    settings = {key: value for key, value in config.to_dict().items() if key not in _NOT_COMPARED}
    return {key: sorted(value) if isinstance(value, list | set) else value for key, value in settings.items()}


def _has_tails(adapter_name: str, targets: Sequence[Target]) -> bool:
    """Whether every target has the adapter with its tail; a deferred one is decomposed first."""
    for target in targets:
        layer = target.module
        if not isinstance(layer, KasaLayer) or adapter_name not in layer.kasa_A:
            return False
        deferred = layer.deferred.get(adapter_name)
        if deferred is not None and deferred.is_loadable_only():
            return False
        layer.resolve_tail(adapter_name)
        if layer.kasa_tail_U[adapter_name].is_meta:
            return False
    return bool(targets)

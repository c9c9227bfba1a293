"""Which layers of a model a configuration means, and what an adapter is in each of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, get_quantization_kwargs
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import PreTrainedModel

from kasatune.errors import ModelError
from kasatune.kasa.config import KasaConfig, LayerSettings
from kasatune.kasa.experts import check_experts, report_experts
from kasatune.kasa.functional import drop_count, scaling
from kasatune.kasa.layer import KasaLayer
from kasatune.kasa.targets import Target
from kasatune.weights.base_weight import BaseWeight, refusal

DEFAULT_TARGETS = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING


def targets_without_weights(config: KasaConfig, model: PreTrainedModel) -> list[Target]:
    """The layers that a new adapter would have in a model on the meta device.

    Raises:
        ModelError: a target that is none, or a layer that cannot be adapted; every one by name.
    """
    if config.target_modules is None:
        default = DEFAULT_TARGETS.get(model.config.model_type)
        if default is None:
            raise ModelError(
                f"there are no default targets for the model type {model.config.model_type!r}; name the layers, or use "
                "all-linear"
            )
        config.target_modules = default if isinstance(default, str) else set(default)
    all_linear = str(config.target_modules).lower() == "all-linear"
    _maybe_include_all_linear_layers(config, model)
    targets = new_targets(config, model, all_linear=all_linear)
    idle = unmatched(config, [target.name for target in targets])
    if idle or not targets:
        linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if refusal(m) is None})
        raise ModelError(
            f"{', '.join(idle) or shown(config.target_modules)} matches no layer; the layers that can be adapted end "
            f"in: {', '.join(linear)}"
        )
    faults = too_large(targets)
    if faults:
        raise ModelError("KaSA cannot be put on this model: " + "; ".join(faults))
    return targets


def new_targets(config: KasaConfig, model: nn.Module, *, all_linear: bool) -> list[Target]:
    """The targets of a new adapter, once it is clear that none of them means a stack of experts.

    Raises:
        ModelError: a target that cannot be adapted, by name.
    """
    check_experts(model, lambda name: check_target_module_exists(config, name))
    targets = matched(config, model, lambda name: bool(check_target_module_exists(config, name)))
    names = [target.name for target in targets]
    report_experts(model, names, unmatched(config, names), all_linear=all_linear)
    return targets


def matched(config: KasaConfig, model: nn.Module, wanted: Callable[[str], bool]) -> list[Target]:
    """The layers of a model whose name is wanted.

    Raises:
        ModelError: one that cannot be adapted, by name.
    """
    adapted = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, BaseTunerLayer))
    quantization = get_quantization_kwargs(model)
    targets, refused = [], []
    for name, module in model.named_modules():
        if not name or (adapted and name.startswith(adapted)) or not wanted(name):
            continue
        base = module.get_base_layer() if isinstance(module, KasaLayer) else module
        weight = BaseWeight.of(base, **quantization)
        reason = None if weight.backend is not None else refusal(base)
        if reason is None:
            targets.append(Target(name, module, weight, layer_settings(config, name, weight.shape)))
        else:
            refused.append(f"{name} is {reason}")
    if refused:
        raise ModelError(
            f"target_modules={shown(config.target_modules)} names what KaSA cannot adapt: {'; '.join(refused)}. "
            "Name the layers that are meant, or leave these out with exclude_modules."
        )
    return targets


def layer_settings(config: KasaConfig, name: str, shape: tuple[int, int]) -> LayerSettings:
    """What the adapter is in a layer of this name with a weight of shape (out, in)."""
    ranks, alphas = config.rank_pattern, config.alpha_pattern
    r = ranks.get(get_pattern_key(list(ranks), name), config.r)
    alpha = alphas.get(get_pattern_key(list(alphas), name), config.lora_alpha)
    return LayerSettings(
        r=r,
        scaling=scaling(alpha, r, use_rslora=config.use_rslora),
        drop=drop_count(*shape, r, config.convention),
        convention=config.convention,
        core=config.core,
        beta=config.beta,
        gamma=config.gamma,
        penalty=config.penalty,
        truncation=config.truncation,
        tail_source=config.tail_source,
    )


def too_large(targets: Iterable[Target]) -> list[str]:
    """A sentence for every layer that the rank is too large for."""
    return [
        f"{name}: rank {settings.r} must be below min(out, in) = {min(weight.shape)}"
        for name, _, weight, settings in targets
        if settings.r >= min(weight.shape)
    ]


def unmatched(config: KasaConfig, names: Sequence[str]) -> list[str]:
    """Entries of target_modules that name no layer."""
    if not isinstance(config.target_modules, set | list):
        return []
    return [t for t in sorted(config.target_modules) if not any(n == t or n.endswith(f".{t}") for n in names)]


def warn_unmatched(config: KasaConfig, targets: Sequence[Target]) -> None:
    """Warn of entries of target_modules that name no layer, where others do."""
    idle = unmatched(config, [target.name for target in targets])
    if idle and targets:
        warnings.warn(f"target_modules: {', '.join(idle)} matched no layer of the model", RuntimeWarning, stacklevel=3)


def shown(target_modules: Any) -> Any:
    """target_modules for a message, in a fixed order."""
    return sorted(target_modules) if isinstance(target_modules, set) else target_modules

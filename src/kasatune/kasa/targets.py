"""Which layers of a model a KasaConfig targets, and their settings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _maybe_include_all_linear_layers,  # pyright: ignore[reportPrivateUsage]
    check_target_module_exists,
)
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from kasatune.errors import ModelError
from kasatune.kasa.config import KasaConfig, LayerSettings, require_kasa_config
from kasatune.kasa.experts import check_experts, report_experts
from kasatune.kasa.functional import drop_count, scaling
from kasatune.kasa.layer import KasaLayer
from kasatune.linalg import TailSVD
from kasatune.linalg.leading_directions import direction_count
from kasatune.peft_compat.quantization_backends import get_quantization_kwargs
from kasatune.weights.base_weight import BaseWeight, refusal
from kasatune.weights.quantized_weight import weight_of

DEFAULT_TARGETS = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING


class Target(NamedTuple):
    """A layer that an adapter is for.

    Args:
        name: in the model.
        module: the layer, with or without adapters.
        weight: of its base layer.
        settings: of the adapter in this layer.
    """

    name: str
    module: nn.Module
    weight: BaseWeight
    settings: LayerSettings

    def original(self) -> Tensor:
        """W (out, in), also where another adapter is folded or merged into it."""
        return self.module.original_weight() if isinstance(self.module, KasaLayer) else self.weight.read()

    def empty_tail(self) -> TailSVD:
        """The tail of a layer from which no triplet is dropped."""
        rows, columns = self.weight.shape
        return TailSVD(torch.zeros(rows, 0), torch.zeros(0), torch.zeros(0, columns))


def targets_of_base(config: KasaConfig, model: nn.Module) -> list[Target]:
    """The layers that a new adapter would have in a model, which may be on the meta device; fills target_modules in.

    Raises:
        InputError: the configuration is not a kasatune.KasaConfig.
        ModelError: an entry of target_modules matches no layer, or a layer cannot be adapted; all by name.
    """
    require_kasa_config(config)
    if config.target_modules is None:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        default = DEFAULT_TARGETS.get(kind) if isinstance(kind, str) else None
        if default is None:
            raise ModelError(
                f"there are no default targets for the model type {kind!r}: name the layers in "
                "target_modules, or use all-linear"
            )
        config.target_modules = default if isinstance(default, str) else set(default)
    all_linear = str(config.target_modules).lower() == "all-linear"
    _maybe_include_all_linear_layers(config, model)
    targets = new_targets(config, model, all_linear=all_linear)
    idle = unmatched(config, [target.name for target in targets])
    if idle or not targets:
        linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if refusal(m) is None})
        raise ModelError(
            f"target_modules: {', '.join(idle) or shown(config.target_modules)} matches no layer; the layers that can "
            f"be adapted end in: {', '.join(linear)}"
        )
    faults = too_large(targets)
    if faults:
        raise ModelError("KaSA cannot adapt this model: " + "; ".join(faults))
    return targets


def new_targets(config: KasaConfig, model: nn.Module, *, all_linear: bool) -> list[Target]:
    """The targets of a new adapter; stacks of experts are refused or reported.

    Args:
        config: of the adapter.
        model: to be adapted.
        all_linear: whether target_modules was "all-linear".

    Raises:
        ModelError: a target cannot be adapted, by name.
    """
    check_experts(model, lambda name: check_target_module_exists(config, name))
    targets = matched(config, model, lambda name: bool(check_target_module_exists(config, name)))
    names = [target.name for target in targets]
    report_experts(model, names, unmatched(config, names), all_linear=all_linear)
    return targets


def matched(config: KasaConfig, model: nn.Module, is_target: Callable[[str], bool]) -> list[Target]:
    """The layers of a model whose name is a target.

    Raises:
        ModelError: a target cannot be adapted, by name.
    """
    adapted = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, BaseTunerLayer))
    quantization = get_quantization_kwargs(model)
    targets: list[Target] = []
    refused: list[str] = []
    for name, module in model.named_modules():
        if not name or (adapted and name.startswith(adapted)) or not is_target(name):
            continue
        name = uncompiled_name(name)
        base = module.get_base_layer() if isinstance(module, KasaLayer) else module
        weight = weight_of(base, **quantization)
        reason = None if weight.backend is not None else refusal(base)
        if reason is None:
            targets.append(Target(name, module, weight, layer_settings(config, name, weight.shape)))
        else:
            refused.append(f"{name} is {reason}")
    if refused:
        raise ModelError(
            f"target_modules={shown(config.target_modules)} matches layers that KaSA cannot adapt: "
            f"{'; '.join(refused)}. Name the intended layers, or leave these out with exclude_modules."
        )
    return targets


def uncompiled_name(name: str) -> str:
    """The name of a module without the wrappers that torch.compile puts around models and modules."""
    return name.replace("_orig_mod.", "")


def layer_settings(config: KasaConfig, name: str, shape: tuple[int, int]) -> LayerSettings:
    """The settings of the adapter in a layer of this name, with a weight of shape (out, in)."""
    ranks, alphas = config.rank_pattern, config.alpha_pattern
    r = ranks.get(get_pattern_key(list(ranks), name), config.r)
    alpha = alphas.get(get_pattern_key(list(alphas), name), config.lora_alpha)
    return LayerSettings(
        r=r,
        scaling=scaling(alpha, r, use_rslora=config.use_rslora),
        drop=drop_count(*shape, r, config.convention) if config.drop is None else config.drop,
        tail_width=r if config.drop is None else config.drop,
        protect=direction_count(config.protect, shape[1]),
        sigma_init=config.sigma_init,
        orthonormal=config.orthonormal,
        truncate_by=config.truncate_by,
        convention=config.convention,
        core=config.core,
        beta=config.beta,
        gamma=0.0 if config.orthonormal else config.gamma,
        penalty=config.penalty,
        truncation=config.truncation,
        tail_source=config.tail_source,
    )


def too_large(targets: Iterable[Target]) -> list[str]:
    """One message for every layer whose r or drop is not below min(out, in), or whose A has too few directions left."""
    crowded = [
        f"{name}: protect closes {settings.protect} of {weight.shape[1]} input directions and leaves fewer than rank "
        f"{settings.r}"
        for name, _, weight, settings in targets
        if settings.protect and settings.protect + settings.r > weight.shape[1]
    ]
    return crowded + [
        f"{name}: {what} {value} must be below min(out, in) = {min(weight.shape)}"
        for name, _, weight, settings in targets
        for what, value in (("rank", settings.r), ("drop", settings.drop))
        if value >= min(weight.shape) and (what == "rank" or settings.drop != settings.r)
    ]


def unmatched(config: KasaConfig, names: Sequence[str]) -> list[str]:
    """The entries of target_modules that match none of the layer names."""
    if not isinstance(config.target_modules, set | list):
        return []
    return [t for t in sorted(config.target_modules) if not any(n == t or n.endswith(f".{t}") for n in names)]


def warn_unmatched(config: KasaConfig, targets: Sequence[Target]) -> None:
    """Warn of entries of target_modules that match no layer, where others do."""
    idle = unmatched(config, [target.name for target in targets])
    if idle and targets:
        warnings.warn(f"target_modules: {', '.join(idle)} matched no layer of the model", RuntimeWarning, stacklevel=3)


def shown(target_modules: Any) -> Any:
    """target_modules for a message, in a fixed order."""
    return sorted(target_modules) if isinstance(target_modules, set) else target_modules

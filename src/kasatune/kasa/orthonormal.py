"""KasaConfig(orthonormal=True): A and B start orthonormal, and are made orthonormal again after every optimizer step.

    A <- (A A^T)^(-1/2) A      B <- B (B^T B)^(-1/2)

These are the polar factors, the nearest matrices with orthonormal rows and columns. The inverse roots of the r x r
Grams are computed by the coupled Newton-Schulz iteration (Higham, Functions of Matrices, section 6.7).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from kasatune.distributed.gather_scatter import is_sharded
from kasatune.distributed.zero3 import is_partitioned
from kasatune.errors import InputError
from kasatune.kasa.config import KasaConfig
from kasatune.kasa.layer import LIVE_LAYERS, KasaLayer
from kasatune.kasa.targets import Target, layer_settings

ITERATIONS = 16
"""Enough for singular values of a factor down to 1/30 of the largest; a step of training leaves them near 1."""


def polar_rows(F: Tensor) -> Tensor:
    """(F F^T)^(-1/2) F, the nearest matrices with orthonormal rows.

    Y <- Y T, Z <- T Z with T = (3 I - Z Y) / 2, from Y = F F^T / c and Z = I, leads Z to (F F^T / c)^(-1/2); c is the
    largest absolute row sum, a bound of the largest eigenvalue.

    Args:
        F: (..., r, n), r <= n, of full rank; computed in float32, or float64 for float64.
    """
    wide = F.to(torch.promote_types(F.dtype, torch.float32))
    gram = wide @ wide.mT
    c = gram.abs().sum(-1).amax(-1)[..., None, None]
    identity = torch.eye(gram.shape[-1], device=F.device, dtype=wide.dtype)
    Y, Z = gram / c, identity.expand_as(gram)
    for _ in range(ITERATIONS):
        T = 1.5 * identity - 0.5 * (Z @ Y)
        Y, Z = Y @ T, T @ Z
    return ((Z @ wide) / c.sqrt()).to(F.dtype)


def install_retraction_hook() -> None:
    """Make every optimizer of this process retract the orthonormal factors that it updates, after its step."""
    register_optimizer_step_post_hook(_after_step)


@torch.no_grad()
def retract(layers: Iterable[KasaLayer], adapter_name: str) -> None:
    """Make A and B of an adapter orthonormal, in the layers where its settings ask for it."""
    chosen = [layer for layer in layers if _is_orthonormal(layer, adapter_name)]
    _retract([(layer.kasa_A[adapter_name], layer.kasa_B[adapter_name]) for layer in chosen])


def scaled_by_norm(targets: Sequence[Target], config: KasaConfig) -> list[Target]:
    """The targets with s <- s ||W||_F / sqrt(min(out, in)), the root mean square of W's singular values.

    The values are written into `config.alpha_pattern`, by which an adapter is saved, loaded and exported.
    """
    alphas = dict(config.given_alphas)
    scaled: dict[str, float] = {}
    for target in targets:
        alpha = alphas.get(get_pattern_key(list(alphas), target.name), config.lora_alpha)
        W = target.original()
        norm = torch.linalg.vector_norm(W, dtype=torch.promote_types(W.dtype, torch.float32))
        scaled[target.name] = alpha * float(norm) / math.sqrt(min(target.weight.shape))
    config.alpha_pattern = {**scaled, **alphas}
    return [target._replace(settings=layer_settings(config, target.name, target.weight.shape)) for target in targets]


def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    active = [(layer, layer.active_adapters[0]) for layer in LIVE_LAYERS if _is_active(layer)]
    if not active:
        return
    positions = {
        id(p): position for position, p in enumerate(p for group in optimizer.param_groups for p in group["params"])
    }
    pairs = [(layer.kasa_A[name], layer.kasa_B[name]) for layer, name in active]
    stepped = [pair for pair in pairs if id(pair[0]) in positions]
    # a weak set has no order
    stepped.sort(key=lambda pair: positions[id(pair[0])])
    with torch.no_grad():
        _retract(stepped)


def _is_active(layer: KasaLayer) -> bool:
    # A layer under construction is in LIVE_LAYERS already and has no settings yet.
    return bool(
        layer.__dict__.get("settings")
        and layer.active_adapters
        and _is_orthonormal(layer, layer.active_adapters[0])
        and layer.kasa_A[layer.active_adapters[0]].requires_grad
    )


def _is_orthonormal(layer: KasaLayer, adapter_name: str) -> bool:
    settings = layer.settings.get(adapter_name)
    return settings is not None and settings.orthonormal


def _retract(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Retract every A (r, in) and B (out, r), factors of one shape together."""
    groups: dict[Any, list[Tensor]] = {}
    for A, B in pairs:
        for factor in (_checked(A), _checked(B).mT):
            groups.setdefault((factor.shape, factor.dtype, factor.device), []).append(factor)
    for factors in groups.values():
        for factor, nearest in zip(factors, polar_rows(torch.stack(factors)), strict=True):
            factor.copy_(nearest)


def _checked(factor: Tensor) -> Tensor:
    if is_partitioned(factor) or is_sharded(factor):
        raise InputError(
            "orthonormal: FSDP and DeepSpeed ZeRO-3 shard A and B, whose Grams are then not complete: use DDP, or one "
            "process"
        )
    return factor.data

"""Annealed truncation: the dropped component T fades back in while an adapter is trained, and is kept in the result.

    W_t x = W x - c_t T x + s B diag(sigma) A x,    c_t from 1 to 0

T is taken out of the adapter, which from then on drops nothing (drop = 0): outside training steps, and in what is saved
and exported, the layer computes W x + s B diag(sigma) A x, a plain LoRA of rank r.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from kasatune.kasa.config import require_kasa_config
from kasatune.kasa.kernel import Tail
from kasatune.kasa.layer import KasaLayer, kasa_layers

Components = dict[str, Tail]
"""T = U V of each layer, by the name that the layer has in the base model."""


@torch.no_grad()
def take_out_tails(model: nn.Module, *, adapter_name: str = "default") -> Components:
    """Turn an adapter into one that drops nothing, and return what it dropped.

    Args:
        model: a PeftModel with the adapter, whose tails are known and not sharded.
        adapter_name: the adapter.
    """
    tuner: Any = model.base_model
    config = require_kasa_config(tuner.peft_config[adapter_name])
    components: Components = {}
    for name, layer in kasa_layers(model):
        if adapter_name not in layer.settings:
            continue
        layer.resolve_tail(adapter_name)
        layer.restore_base()
        U, V = layer.kasa_tail_U[adapter_name], layer.kasa_tail_V[adapter_name]
        components[name] = Tail(U.detach().clone(), V.detach().clone())
        layer.kasa_tail_U[adapter_name] = _frozen(U[:, :0])
        layer.kasa_tail_V[adapter_name] = _frozen(V[:0])
        layer.settings[adapter_name] = dataclasses.replace(layer.settings[adapter_name], drop=0, tail_width=0)
        layer.output_checks.pop(adapter_name, None)
        layer.sync_fold()
    config.drop = 0
    return components


def fade(model: nn.Module, components: Components, c: float, *, adapter_name: str = "default") -> None:
    """Drop c T until the next call, in every layer; c = 0 drops nothing."""
    for name, layer in kasa_layers(model):
        if name in components:
            _fade(layer, components[name], c, adapter_name)


def _fade(layer: KasaLayer, component: Tail, c: float, adapter_name: str) -> None:
    if c > 0 and component.V.shape[0]:
        device = layer.kasa_A[adapter_name].device
        layer.fading[adapter_name] = Tail(c * component.U.to(device), component.V.to(device))
    else:
        layer.fading.pop(adapter_name, None)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone().contiguous(), requires_grad=False)

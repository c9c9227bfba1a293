"""A KaSA adapter as a plain LoRA adapter of the untouched base, exactly."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kasatune.errors import AdapterError
from kasatune.maths import Factors


class StoredLayer(NamedTuple):
    """One layer of a native adapter as its file holds it."""

    factors: Factors
    tail_U: Tensor
    tail_V: Tensor


class StackedLora(NamedTuple):
    """A (2r, in) and B (out, 2r) of a LoRA layer of scaling 1."""

    A: Tensor
    B: Tensor


def stack(layer: StoredLayer, scaling: float) -> StackedLora:
    """W' - W = [ -U_d S_d | s B diag(sigma) ] [ Vh_d ; A ]: a LoRA of rank 2r and scaling 1 on the untouched W.

    Args:
        layer: factors and tail of one layer.
        scaling: s.

    Returns:
        A (2r, in) and B (out, 2r), float32 or wider.
    """
    A, sigma, B = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in layer.factors)
    core = B * sigma if sigma.ndim == 1 else B @ sigma
    tail_U, tail_V = layer.tail_U.to(A.dtype), layer.tail_V.to(A.dtype)
    return StackedLora(torch.cat([tail_V, A]).contiguous(), torch.cat([-tail_U, scaling * core], dim=1).contiguous())


def stored_layers(tensors: dict[str, Tensor]) -> tuple[dict[str, StoredLayer], dict[str, Tensor]]:
    """Sort a native adapter's tensors into layers by name, and all else (heads, biases).

    Raises:
        AdapterError: a layer lacks one of its five tensors.
    """
    found: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition(".")
        if kind.startswith("kasa_"):
            found.setdefault(name, {})[kind] = tensor
        else:
            rest[key] = tensor
    layers = {}
    for name, parts in found.items():
        missing = [k for k in ("kasa_A", "kasa_sigma", "kasa_B", "kasa_tail_U", "kasa_tail_V") if k not in parts]
        if missing:
            raise AdapterError(f"{name}: the adapter file lacks {', '.join(missing)}; it was cut or edited")
        factors = Factors(parts["kasa_A"], parts["kasa_sigma"], parts["kasa_B"])
        layers[name] = StoredLayer(factors, parts["kasa_tail_U"], parts["kasa_tail_V"])
    if not layers:
        raise AdapterError("the adapter file holds no KaSA layer; it was cut, or it is of another kind")
    return layers, rest


def lora_config(config: dict[str, Any], ranks: dict[str, int], *, fan_in_fan_out: bool) -> dict[str, Any]:
    """The adapter_config.json of the stacked LoRA.

    Args:
        config: the native adapter's configuration as plain data.
        ranks: LoRA rank by layer name.
        fan_in_fan_out: whether any of the layers is a Conv1D.
    """
    values = sorted(ranks.values())
    usual = max(set(values), key=lambda rank: (values.count(rank), rank))
    pattern = {name: rank for name, rank in sorted(ranks.items()) if rank != usual}
    carried = (
        *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "target_modules", "exclude_modules"),
        *("modules_to_save", "layers_to_transform", "layers_pattern", "peft_version"),
    )
    return {
        **{key: config.get(key) for key in carried},
        "alpha_pattern": {name: float(rank) for name, rank in pattern.items()},
        "bias": "lora_only" if str(config.get("bias", "none")).endswith("_only") else config.get("bias", "none"),
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": float(usual),
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": usual,
        "rank_pattern": pattern,
        "use_dora": False,
        "use_rslora": False,
    }

"""A KaSA adapter as a plain LoRA adapter of the untouched base, exactly."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kasatune.errors import AdapterError
from kasatune.tuner.formats import exact_patterns
from kasatune.tuner.native import CARRIED, StoredLayer, scaling_of, stored_layers
from kasatune.tuner.storage import PREFIX, AdapterFiles, listed


class StackedLora(NamedTuple):
    """A (q, in) and B (out, q) of a LoRA layer of scaling 1: W' - W = B A."""

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


def to_lora(source: AdapterFiles) -> AdapterFiles:
    """A native adapter as a stock LoRA adapter; heads and biases are carried as they are.

    Raises:
        AdapterError: the source lacks its tails.
    """
    layers, rest = stored_layers(source.tensors)
    return lora_files(
        source.config, {name: stack(layer, scaling_of(source.config, name)) for name, layer in layers.items()}, rest
    )


def lora_files(config: dict[str, Any], layers: dict[str, StackedLora], rest: dict[str, Tensor]) -> AdapterFiles:
    """The stock LoRA adapter of these layers, scaling exactly 1 in each.

    Args:
        config: of the adapter that they come from; target, head and base names are taken over.
        layers: factors by module name.
        rest: tensors that are no adapter's, by checkpoint key.
    """
    tensors = dict(rest)
    for name, lora in layers.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"] = lora
    return AdapterFiles(_config(config, {name: lora.A.shape[0] for name, lora in layers.items()}), tensors)


def stock_layers(files: AdapterFiles) -> tuple[dict[str, StackedLora], dict[str, Tensor]]:
    """The layers of a stock LoRA adapter by module name, scaling folded into B, and all other tensors.

    Raises:
        AdapterError: it is no plain LoRA of linear layers: DoRA, convolutions, embeddings, biases of its own.
    """
    found: dict[str, dict[str, Tensor]] = {}
    rest = {}
    for key, tensor in files.tensors.items():
        for part in ("lora_A", "lora_B"):
            if key.endswith(f".{part}.weight"):
                found.setdefault(key.removesuffix(f".{part}.weight").removeprefix(PREFIX), {})[part] = tensor
                break
        else:
            rest[key] = tensor
    special = [key for key in rest if ".lora_" in key] + [n for n, p in found.items() if p["lora_A"].ndim != 2]
    if special or files.config.get("use_dora"):
        raise AdapterError(
            f"this LoRA adapter is more than B A on linear layers ({listed(special) or 'use_dora'}); "
            "merge it with PEFT, or convert it with peft.convert_to_lora"
        )
    layers = {}
    for name, parts in found.items():
        A, B = (parts[p].to(torch.promote_types(parts[p].dtype, torch.float32)) for p in ("lora_A", "lora_B"))
        layers[name] = StackedLora(A, scaling_of(files.config, name) * B)
    return layers, rest


def _config(config: dict[str, Any], ranks: dict[str, int]) -> dict[str, Any]:
    values = sorted(ranks.values())
    usual = max(set(values), key=lambda rank: (values.count(rank), rank))
    pattern = exact_patterns({name: rank for name, rank in ranks.items() if rank != usual}, ranks)
    bias = config.get("bias") or "none"
    return {
        **{key: config.get(key) for key in CARRIED},
        "alpha_pattern": dict(pattern),
        "bias": "lora_only" if str(bias).endswith("_only") else bias,
        "fan_in_fan_out": bool(config.get("fan_in_fan_out")),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": usual,
        "rank_pattern": pattern,
        "use_dora": False,
        "use_rslora": False,
    }

"""Export a KaSA adapter exactly as a plain LoRA adapter of rank 2r on the unmodified base, and read stock LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kasatune.adapters.adapter_files import PREFIX, AdapterFiles, listed
from kasatune.adapters.lora_settings import check_settings, residual_init
from kasatune.adapters.native_format import CARRIED, POINTWISE, StoredLayer, held_as, scaling_of, stored_layers
from kasatune.adapters.recognize_format import exact_patterns
from kasatune.errors import AdapterError

_EMBEDDINGS = ("trainable_token_indices", "ensure_weight_tying")


class StackedLora(NamedTuple):
    """A (q, in) and B (out, q) of a LoRA layer of scaling 1: W' - W = B A."""

    A: Tensor
    B: Tensor


def stack(layer: StoredLayer, scaling: float) -> StackedLora:
    """W' - W = [ -U_d S_d | s B diag(sigma) ] [ Vh_d ; A ]: a LoRA of rank 2r and scaling 1 on the unmodified W.

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
    """Convert a native adapter to a stock LoRA adapter; heads and biases are copied unchanged.

    Raises:
        AdapterError: the source lacks its tails.
    """
    layers, rest = stored_layers(source.tensors)
    held = {name: held_as(source.config, name) for name in layers}
    trailing = {name: int(kind[-2]) for name, kind in held.items() if kind in POINTWISE}
    stacked = {name: stack(layer, scaling_of(source.config, name)) for name, layer in layers.items()}
    return lora_files(source.config, stacked, rest, trailing)


def lora_files(
    config: dict[str, Any],
    layers: dict[str, StackedLora],
    rest: dict[str, Tensor],
    trailing: Mapping[str, int] = MappingProxyType({}),
) -> AdapterFiles:
    """The stock LoRA adapter of these layers, scaling exactly 1 in each.

    Args:
        config: of the source adapter; names of targets, heads and base are copied.
        layers: factors by module name.
        rest: tensors that do not belong to adapted layers, by checkpoint key.
        trailing: number of trailing dimensions of size 1 of a layer's tensors, for convolutions.
    """
    tensors = dict(rest)
    for name, lora in layers.items():
        for part, tensor in zip(("lora_A", "lora_B"), lora, strict=True):
            shape = (*tensor.shape, *[1] * trailing.get(name, 0))
            tensors[f"{PREFIX}{name}.{part}.weight"] = tensor.reshape(shape)
    return AdapterFiles(_config(config, {name: lora.A.shape[0] for name, lora in layers.items()}), tensors)


def stock_layers(files: AdapterFiles) -> tuple[dict[str, StackedLora], dict[str, Tensor]]:
    """The layers of a stock LoRA adapter by module name, scaling folded into B, and all other tensors.

    Raises:
        AdapterError: it is not a plain LoRA of linear layers on the untouched base; the settings or tensors by name.
    """
    check_settings(files.config, "lora")
    init = residual_init(files.config)
    if init is not None:
        raise AdapterError(
            f"init_lora_weights={init!r} changes the base when the adapter is loaded; export it to 'lora' first, with "
            "its base"
        )
    return folded_layers(files)


def folded_layers(files: AdapterFiles) -> tuple[dict[str, StackedLora], dict[str, Tensor]]:
    """`stock_layers` of an adapter whose settings were checked.

    Raises:
        AdapterError: it holds convolutions, embeddings or tensors of another kind.
    """
    parts_by_layer: dict[str, dict[str, Tensor]] = {}
    rest = {}
    for key, tensor in files.tensors.items():
        for part in ("lora_A", "lora_B"):
            if key.endswith(f".{part}.weight"):
                parts_by_layer.setdefault(key.removesuffix(f".{part}.weight").removeprefix(PREFIX), {})[part] = tensor
                break
        else:
            rest[key] = tensor
    special = [key for key in rest if ".lora_" in key]
    special += [
        n for n, parts in parts_by_layer.items() if any(p.ndim < 2 or p[0, 0].numel() > 1 for p in parts.values())
    ]
    if special:
        raise AdapterError(
            f"this LoRA adapter is more than B A on linear layers ({listed(special)}); merge it with PEFT: "
            "PeftModel.from_pretrained(base, adapter).merge_and_unload()"
        )
    layers = {}
    for name, parts in parts_by_layer.items():
        A, B = (parts[part].reshape(parts[part].shape[:2]) for part in ("lora_A", "lora_B"))
        A, B = (factor.to(torch.promote_types(factor.dtype, torch.float32)) for factor in (A, B))
        layers[name] = StackedLora(A, scaling_of(files.config, name) * B)
    return layers, rest


def with_equal_ranks(files: AdapterFiles) -> AdapterFiles:
    """[ A ; 0 ] and [ B | 0 ], padded to the largest rank of a layer, so that W' - W = B A stays and one rank holds.

    Args:
        files: a stock LoRA adapter.
    """
    layers, rest = stock_layers(files)
    largest = max((A.shape[0] for A, _ in layers.values()), default=0)
    padded: dict[str, StackedLora] = {}
    for name, (A, B) in layers.items():
        missing = largest - A.shape[0]
        A = torch.cat([A, A.new_zeros(missing, A.shape[1])])
        padded[name] = StackedLora(A, torch.cat([B, B.new_zeros(B.shape[0], missing)], dim=1))
    return lora_files(files.config, padded, rest, trailing_dimensions(files))


def trailing_dimensions(files: AdapterFiles) -> dict[str, int]:
    """The number of trailing dimensions of size 1 of a stock LoRA adapter's tensors, by the name of the convolution."""
    end = ".lora_A.weight"
    counts = {key.removesuffix(end).removeprefix(PREFIX): t.ndim - 2 for key, t in files.tensors.items() if end in key}
    return {name: count for name, count in counts.items() if count}


def _config(config: dict[str, Any], ranks: dict[str, int]) -> dict[str, Any]:
    values = sorted(ranks.values())
    usual = max(set(values), key=lambda rank: (values.count(rank), rank))
    pattern = exact_patterns({name: rank for name, rank in ranks.items() if rank != usual}, ranks)
    bias = config.get("bias") or "none"
    return {
        **{key: config.get(key) for key in CARRIED},
        **{key: config[key] for key in _EMBEDDINGS if config.get(key)},
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

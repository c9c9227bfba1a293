"""The native KaSA format as plain data: layers and their checkpoint keys, and tails computed from a base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kasatune.adapters.adapter_files import PREFIX, AdapterFiles, listed
from kasatune.adapters.recognize_format import configured
from kasatune.errors import AdapterError
from kasatune.kasa.functional import Factors, drop_count, scaling
from kasatune.kasa.truncation.compute_tails import TailRequest, compute_tails
from kasatune.peft_compat.quantization_backends import get_quantization_kwargs
from kasatune.weights.base_weight import BaseWeight
from kasatune.weights.fingerprint import weight_sketch
from kasatune.weights.quantized_weight import weight_of

# Configuration fields with the same meaning in every format.
CARRIED = (
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "target_modules", "exclude_modules"),
    *("modules_to_save", "layers_to_transform", "layers_pattern", "peft_version"),
)
_TAIL = ("kasa_tail_U", "kasa_tail_V")
# Values of "held_as" for a pointwise convolution over one or two dimensions.
POINTWISE = ("pointwise1d", "pointwise2d")


class StoredLayer(NamedTuple):
    """One layer of a native adapter, as stored in its file."""

    factors: Factors
    tail_U: Tensor
    tail_V: Tensor


def stored_layers(tensors: dict[str, Tensor]) -> tuple[dict[str, StoredLayer], dict[str, Tensor]]:
    """The layers of a native adapter by module name, and all other tensors (heads, biases) by checkpoint key.

    Raises:
        AdapterError: a layer lacks one of its five tensors.
    """
    parts_by_layer, rest = _split_by_layer(tensors)
    layers = {}
    for name, parts in parts_by_layer.items():
        missing = [kind for kind in ("kasa_A", "kasa_sigma", "kasa_B", *_TAIL) if kind not in parts]
        if missing:
            raise AdapterError(
                f"{listed([name])}: the adapter lacks {', '.join(missing)}; it is incomplete or was edited"
            )
        factors = Factors(parts["kasa_A"], parts["kasa_sigma"], parts["kasa_B"])
        layers[name] = StoredLayer(factors, parts["kasa_tail_U"], parts["kasa_tail_V"])
    if not layers:
        raise AdapterError("the adapter holds no KaSA layer; it is incomplete, or of another kind")
    return layers, rest


def trained_factors(tensors: dict[str, Tensor]) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """The trained factors, by module name, of an adapter that may lack its tails; and all other tensors."""
    parts_by_layer, rest = _split_by_layer(tensors)
    return {name: Factors(p["kasa_A"], p["kasa_sigma"], p["kasa_B"]) for name, p in parts_by_layer.items()}, rest


def native_tensors(factors: dict[str, Factors], rest: dict[str, Tensor]) -> dict[str, Tensor]:
    """Trained factors under the keys of a native adapter, together with the other tensors."""
    tensors = dict(rest)
    for name, (A, sigma, B) in factors.items():
        tensors |= {f"{PREFIX}{name}.kasa_A": A, f"{PREFIX}{name}.kasa_sigma": sigma, f"{PREFIX}{name}.kasa_B": B}
    return tensors


def scaling_of(config: dict[str, Any], module: str) -> float:
    """The scaling s of one layer, from an adapter's configuration."""
    r = configured(config, "r", "rank_pattern", module)
    alpha = configured(config, "lora_alpha", "alpha_pattern", module)
    return scaling(alpha, r, use_rslora=bool(config.get("use_rslora")))


def with_tails(source: AdapterFiles, base: nn.Module) -> AdapterFiles:
    """Compute the tails that the adapter's convention drops from the weights of `base`; add them and weight sketches.

    Raises:
        AdapterError: the base lacks a layer, or has it with another shape.
        ModelError: a weight cannot be decomposed.
    """
    factors, _ = trained_factors(source.tensors)
    requests = []
    tensors = dict(source.tensors)
    fingerprint = {}
    for name, (A, _, B) in factors.items():
        base_weight = weight_in(base, name, (B.shape[0], A.shape[1]))
        W = base_weight.read()
        dropped = drop_count(*base_weight.shape, A.shape[0], source.config["convention"])
        fingerprint[name] = {**weight_sketch(W, base_weight.bits), "held_as": base_weight.held_as}
        tensors[f"{PREFIX}{name}.kasa_tail_U"] = torch.zeros(B.shape[0], A.shape[0])
        tensors[f"{PREFIX}{name}.kasa_tail_V"] = torch.zeros_like(A, dtype=torch.float32)
        if dropped:
            requests.append(TailRequest(name, W, dropped))
    for name, tail in compute_tails(requests, len(requests)).items():
        dropped = len(tail.S)
        tensors[f"{PREFIX}{name}.kasa_tail_U"][:, :dropped] = (tail.U * tail.S).float()
        tensors[f"{PREFIX}{name}.kasa_tail_V"][:dropped] = tail.Vh.float()
    return AdapterFiles({**source.config, "base_fingerprint": fingerprint}, tensors)


def weight_in(base: nn.Module, name: str, shape: tuple[int, int]) -> BaseWeight:
    """The weight of the base layer `name`, which must have the given (out, in) shape.

    Raises:
        AdapterError: the base has no such layer, or it is not linear or has another shape.
    """
    try:
        module = base.get_submodule(name)
    except AttributeError:
        raise AdapterError(
            f"{type(base).__name__} has no layer {listed([name])}: the adapter belongs to another base model"
        ) from None
    try:
        weight = weight_of(module, **get_quantization_kwargs(base))
        actual_shape = weight.shape
    except AttributeError:
        raise AdapterError(f"{name} is a {type(module).__name__} in this base, not a linear layer") from None
    if actual_shape != shape:
        raise AdapterError(
            f"{name} has shape {list(actual_shape)} in this base, the adapter needs {list(shape)}: load the right base"
        )
    return weight


def require_untied(base: nn.Module, layers: Iterable[str], what: str) -> None:
    """Refuse layers that share their weight with another module, for adapters whose loading changes that weight.

    Args:
        base: the base model; may be on the meta device.
        layers: names of the adapted layers.
        what: what changes the weight, for the message.

    Raises:
        AdapterError: the tied layers by name.
    """
    owners = {name: id(module.weight) for name, module in base.named_modules() if hasattr(module, "weight")}
    counts = Counter(owners.values())
    tied = [name for name in layers if name in owners and counts[owners[name]] > 1]
    if tied:
        raise AdapterError(
            f"{what} changes the weight of {listed(tied)} when the adapter is loaded, and with it that of the module "
            "that it is tied to: leave it out of target_modules, or untie the base (tie_word_embeddings=False)"
        )


def held_as(config: Mapping[str, Any], name: str) -> str | None:
    """The kind of layer that held a weight when the adapter was trained; None if the adapter does not record it."""
    fingerprint = config.get("base_fingerprint")
    entry = fingerprint.get(name) if isinstance(fingerprint, dict) else None
    value = entry.get("held_as") if isinstance(entry, dict) else None
    return value if isinstance(value, str) else None


def _split_by_layer(tensors: dict[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    parts_by_layer: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition(".")
        if kind.startswith("kasa_"):
            parts_by_layer.setdefault(name.removeprefix(PREFIX), {})[kind] = tensor
        else:
            rest[key] = tensor
    return parts_by_layer, rest

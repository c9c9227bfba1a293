"""The three tensors lora_A, lora_B and lora_diag, in which PEFT and the authors' code both hold KaSA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kasatune.adapters.formats import DIAGONAL, split_key
from kasatune.adapters.native_format import trained_factors
from kasatune.adapters.storage import PREFIX, AdapterFiles, listed
from kasatune.errors import InputError
from kasatune.kasa.functional import Convention, Factors, drop_count

# What holds the weight of a convolution of kernel 1, over one dimension or two.
POINTWISE = ("pointwise1d", "pointwise2d")
_FIELDS = ("r", "lora_alpha", "lora_dropout", "use_rslora", "bias")


def diagonal_factors(factors: Factors) -> Factors:
    """B sigma A = (B U) diag(S) (V A) for sigma = U S V: a dense core as a diagonal one, of the same rank.

    A diagonal core comes back as it is. float32 or wider, computed in float64.
    """
    A, sigma, B = factors
    if sigma.ndim == 1:
        return factors
    dtype = torch.promote_types(sigma.dtype, torch.float32)
    U, S, Vh = torch.linalg.svd(sigma.double())
    return Factors((Vh @ A.double()).to(dtype), S.to(dtype), (B.double() @ U).to(dtype))


def diagonal_tensors(source: AdapterFiles) -> dict[str, Tensor]:
    """The tensors lora_A, lora_B and lora_diag of a native adapter, and its heads and biases as they are."""
    layers, tensors = trained_factors(source.tensors)
    for name, factors in layers.items():
        A, sigma, B = diagonal_factors(factors)
        for part, tensor in zip(DIAGONAL, (A, B, sigma), strict=True):
            tensors[f"{PREFIX}{name}.{part}"] = tensor
    return tensors


def native_from_diagonal(files: AdapterFiles, kind: str) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """The trained factors by module name, and all other tensors, of an adapter with lora_diag."""
    found: dict[str, dict[str, Tensor]] = {}
    rest = {}
    for key, tensor in files.tensors.items():
        split = split_key(key, kind)
        if split is None:
            rest[key] = tensor
        else:
            found.setdefault(split[0], {})[split[1]] = tensor
    down, up, core = DIAGONAL
    return {name: Factors(parts[down], parts[core], parts[up]) for name, parts in found.items()}, rest


def shared_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that LoraConfig and KasaConfig have in common beside those of `native.CARRIED`."""
    return {
        **{key: config[key] for key in _FIELDS if config.get(key) is not None},
        "alpha_pattern": dict(config.get("alpha_pattern") or {}),
        "rank_pattern": dict(config.get("rank_pattern") or {}),
        "inference_mode": True,
    }


def require_holdable(source: AdapterFiles, convention: Convention, holder: str, *, conv1d: bool) -> None:
    """Refuse an adapter that a format with lora_diag cannot hold exactly.

    Its reader drops the triplets itself, so that it must drop those of this adapter.

    Args:
        source: a native adapter, with or without tails.
        convention: by which the reader counts the triplets that it drops.
        holder: the reader, for the message.
        conv1d: whether it takes Conv1D layers.

    Raises:
        InputError: the layers that do not fit, by name, with the reason and the remedy.
    """
    layers, _ = trained_factors(source.tensors)
    by, drop = source.config.get("truncate_by", "magnitude"), source.config.get("drop")
    if by != "magnitude" or drop is not None:
        raise InputError(
            f"{holder} drops the r triplets of smallest magnitude when it loads an adapter, and this adapter was "
            f"trained with truncate_by={by!r}, drop={drop}: export to 'lora' or 'kasa'"
        )
    held = {name: held_as(source.config, name) for name in layers}
    faults = []
    convolutions = [name for name in layers if held[name] in POINTWISE]
    if convolutions:
        faults.append(f"{holder} has no KaSA on convolutions ({listed(convolutions)})")
    quantized = [name for name in layers if held[name] not in ("linear", "conv1d", *POINTWISE, None)]
    if quantized:
        faults.append(f"{holder} has no KaSA on quantized layers ({listed(quantized)})")
    transposed = [name for name in layers if held[name] == "conv1d"]
    if not transposed and source.config.get("fan_in_fan_out"):
        transposed = [name for name in layers if held[name] is None]
    if transposed and not conv1d:
        faults.append(f"{holder} has no KaSA on Conv1D layers ({listed(transposed)})")
    other = []
    for name, (A, _, B) in layers.items():
        ours = drop_count(B.shape[0], A.shape[1], A.shape[0], source.config["convention"])
        theirs = drop_count(B.shape[0], A.shape[1], A.shape[0], convention)
        if ours != theirs:
            other.append(f"{name} ({ours} here, {theirs} there)")
    if other:
        faults.append(f"{holder} drops another number of singular triplets in {listed(other)}")
    if faults:
        raise InputError("; ".join(faults) + ". Export to 'lora' or 'kasa', which hold every adapter exactly.")


def held_as(config: Mapping[str, Any], name: str) -> str | None:
    """What held the weight of a layer when the adapter was made; None where the adapter does not say."""
    fingerprint = config.get("base_fingerprint")
    entry = fingerprint.get(name) if isinstance(fingerprint, dict) else None
    value = entry.get("held_as") if isinstance(entry, dict) else None
    return value if isinstance(value, str) else None

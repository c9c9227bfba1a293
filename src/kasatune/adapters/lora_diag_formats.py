"""KaSA adapters as PEFT and as the authors' code save them: a LoraConfig, and lora_A, lora_B and lora_diag.

Neither form holds the truncated tail: its reader decomposes the base again at each load. PEFT's form has a
`kasa_config` in its LoraConfig. The authors' code is a copy of PEFT 0.13 that puts KaSA into every linear LoRA layer,
so that only the tensor lora_diag distinguishes their adapters from stock ones; in the version of the published runs
lora_diag is r x r (docs/deviations.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kasatune.adapters.adapter_files import PREFIX, AdapterFiles, listed
from kasatune.adapters.lora_settings import check_settings
from kasatune.adapters.native_format import CARRIED, POINTWISE, held_as, native_tensors, trained_factors
from kasatune.adapters.recognize_format import DIAGONAL, configured, split_key
from kasatune.errors import InputError
from kasatune.kasa.config import KasaConfig
from kasatune.kasa.functional import Convention, Factors, drop_count

_FIELDS = ("r", "lora_alpha", "lora_dropout", "use_rslora", "bias")
# Fields that PEFT 0.13 does not know and rejects.
_NEWER = ("exclude_modules", "peft_version")


def to_peft_kasa(source: AdapterFiles) -> AdapterFiles:
    """Convert a native adapter to PEFT's form. PEFT decomposes the base again when it loads it.

    Raises:
        InputError: PEFT's form cannot hold it exactly: quantized or Conv1D layers, or other triplets dropped.
    """
    require_holdable(source, "paper", "PEFT", conv1d=False)
    config = {
        **{key: source.config.get(key) for key in CARRIED},
        **shared_fields(source.config),
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "kasa_config": {"beta": source.config["beta"], "gamma": source.config["gamma"]},
        "peft_type": "LORA",
        "use_dora": False,
    }
    return AdapterFiles(config, diagonal_tensors(source))


def from_peft_kasa(files: AdapterFiles) -> AdapterFiles:
    """Convert to a native adapter without tails: PEFT drops the r smallest triplets of min(out, in).

    Raises:
        AdapterError: the configuration combines KaSA with something else.
    """
    check_settings(files.config, "peft-kasa")
    factors, rest = native_from_diagonal(files, "peft-kasa")
    sub = files.config["kasa_config"]
    sub = sub if isinstance(sub, dict) else {}
    return AdapterFiles(
        native_config(files.config, convention="paper", core="diagonal", beta=sub.get("beta"), gamma=sub.get("gamma")),
        native_tensors(factors, rest),
    )


def to_authors(source: AdapterFiles) -> AdapterFiles:
    """Convert a native adapter to the form of the authors' released code, which decomposes the base at each load.

    Raises:
        InputError: their code cannot hold it exactly: quantized layers, or other triplets dropped.
    """
    require_holdable(source, "authors", "the authors' code", conv1d=True)
    layers = list(trained_factors(source.tensors)[0])
    config = {
        **{key: source.config.get(key) for key in CARRIED if key not in _NEWER},
        **shared_fields(source.config),
        **_patterns(source.config, layers),
        "fan_in_fan_out": bool(source.config.get("fan_in_fan_out")),
        "init_lora_weights": True,
        "peft_type": "LORA",
        "use_dora": False,
    }
    if source.config.get("exclude_modules"):
        config["target_modules"] = layers
    return AdapterFiles(config, diagonal_tensors(source))


def from_authors(files: AdapterFiles) -> AdapterFiles:
    """Convert to a native adapter without tails: their code drops what lies past the index in - r.

    Their configuration does not record beta and gamma; KasaConfig's defaults are used if training continues.

    Raises:
        AdapterError: the configuration combines KaSA with something else.
    """
    check_settings(files.config, "authors")
    factors, rest = native_from_diagonal(files, "authors")
    dense = any(core.ndim == 2 for _, core, _ in factors.values())
    core = "dense" if dense else "diagonal"
    if dense:
        factors = {name: f._replace(sigma=f.sigma.diag()) if f.sigma.ndim == 1 else f for name, f in factors.items()}
    return AdapterFiles(native_config(files.config, convention="authors", core=core), native_tensors(factors, rest))


# Shared by both forms


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
    """The tensors lora_A, lora_B and lora_diag of a native adapter, with its heads and biases unchanged."""
    layers, tensors = trained_factors(source.tensors)
    for name, factors in layers.items():
        A, sigma, B = diagonal_factors(factors)
        for part, tensor in zip(DIAGONAL, (A, B, sigma), strict=True):
            tensors[f"{PREFIX}{name}.{part}"] = tensor
    return tensors


def native_from_diagonal(files: AdapterFiles, kind: str) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """The trained factors by module name, and all other tensors, of an adapter with lora_diag."""
    parts_by_layer: dict[str, dict[str, Tensor]] = {}
    rest = {}
    for key, tensor in files.tensors.items():
        split = split_key(key, kind)
        if split is None:
            rest[key] = tensor
        else:
            parts_by_layer.setdefault(split[0], {})[split[1]] = tensor
    down, up, core = DIAGONAL
    return {name: Factors(parts[down], parts[core], parts[up]) for name, parts in parts_by_layer.items()}, rest


def shared_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that LoraConfig and KasaConfig share besides those of `native_format.CARRIED`."""
    return {
        **{key: config[key] for key in _FIELDS if config.get(key) is not None},
        "alpha_pattern": dict(config.get("alpha_pattern") or {}),
        "rank_pattern": dict(config.get("rank_pattern") or {}),
        "inference_mode": True,
    }


def require_holdable(source: AdapterFiles, convention: Convention, holder: str, *, conv1d: bool) -> None:
    """Refuse an adapter that a format with lora_diag cannot hold exactly.

    Its reader truncates the base itself, and must drop the same triplets as this adapter.

    Args:
        source: a native adapter, with or without tails.
        convention: by which the reader counts the triplets that it drops.
        holder: the reader, for the message.
        conv1d: whether it takes Conv1D layers.

    Raises:
        InputError: the layers that do not fit, by name, with the reason and the remedy.
    """
    by, drop = source.config.get("truncate_by", "magnitude"), source.config.get("drop")
    ranks = {A.shape[0] for A, _, _ in trained_factors(source.tensors)[0].values()}
    if by != "magnitude" or (drop is not None and ranks != {drop}):
        raise InputError(
            f"{holder} drops the r triplets of smallest magnitude when it loads an adapter, and this adapter was "
            f"trained with truncate_by={by!r}, drop={drop}: export to 'lora' or 'kasa'"
        )
    layers, _ = trained_factors(source.tensors)
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


def native_config(config: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The configuration of a native adapter from a LoraConfig; settings that are None keep KasaConfig's defaults."""
    carried = {key: config.get(key) for key in CARRIED}
    auto_mapping = carried.pop("auto_mapping")
    values = {key: value for key, value in settings.items() if value is not None}
    fields = shared_fields(config)
    native = KasaConfig(**carried, **fields, **values).to_dict()
    return {**native, "auto_mapping": auto_mapping, "fan_in_fan_out": bool(config.get("fan_in_fan_out"))}


def _patterns(config: dict[str, Any], layers: list[str]) -> dict[str, dict[str, Any]]:
    """rank_pattern and alpha_pattern for PEFT 0.13, which looks both up under one name: the layer's own, in full."""
    r, alpha = config["r"], config["lora_alpha"]
    ranks = {name: configured(config, "r", "rank_pattern", name) for name in layers}
    alphas = {name: configured(config, "lora_alpha", "alpha_pattern", name) for name in layers}
    special = [name for name in layers if (ranks[name], alphas[name]) != (r, alpha)]
    shadowed = [name for name in layers if any(re.match(rf".*\.{key}$", name) for key in special if key != name)]
    if shadowed:
        raise InputError(
            f"the authors' code would give {listed(shadowed)} the rank of a layer whose name is its ending. "
            "Export to 'lora' or 'kasa', which hold every adapter exactly."
        )
    return {
        "rank_pattern": {name: ranks[name] for name in special},
        "alpha_pattern": {name: alphas[name] for name in special},
    }

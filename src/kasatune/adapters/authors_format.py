"""KaSA adapters as the authors' code saves them: a LoraConfig, and lora_A, lora_B, lora_diag.

Their code is a copy of PEFT 0.13 that puts KaSA into every linear LoRA layer, so that nothing but the tensor lora_diag
tells their adapters from stock ones. In the version of the published runs lora_diag is r x r (docs/deviations.md).
"""

from __future__ import annotations

import re
from typing import Any

from kasatune.adapters.diagonal import diagonal_tensors, native_from_diagonal, require_holdable, shared_fields
from kasatune.adapters.formats import configured
from kasatune.adapters.native_format import CARRIED, native_tensors, trained_factors
from kasatune.adapters.peft_kasa_format import native_config
from kasatune.adapters.storage import AdapterFiles, listed
from kasatune.errors import InputError

# Fields that PEFT 0.13 does not know and stops at.
_NEWER = ("exclude_modules", "peft_version")


def to_authors(source: AdapterFiles) -> AdapterFiles:
    """A native adapter as the authors' released code reads it, which decomposes the base again at each load.

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
    """A native adapter without tails: their code drops what lies past the index in - r.

    Their configuration says nothing of beta and gamma; KasaConfig's own values stand in, for training that goes on.

    Raises:
        AdapterError: the configuration asks for something beside KaSA.
    """
    factors, rest = native_from_diagonal(files, "authors")
    dense = any(core.ndim == 2 for _, core, _ in factors.values())
    core = "dense" if dense else "diagonal"
    if dense:
        factors = {name: f._replace(sigma=f.sigma.diag()) if f.sigma.ndim == 1 else f for name, f in factors.items()}
    return AdapterFiles(native_config(files.config, convention="authors", core=core), native_tensors(factors, rest))


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

"""The certificate of a conversion: how near its result comes to what it was made from, measured."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import nn

import kasatune
from kasatune.adapters.conversion import Source
from kasatune.adapters.parity import (
    LENGTH,
    OUTPUT_LIMITS,
    ROWS,
    SEED,
    UPDATE_LIMIT,
    Outputs,
    is_quantized,
    own_parameters,
    update_difference,
    update_factors,
)
from kasatune.adapters.recompress import Recompressed
from kasatune.adapters.storage import CONFIG, WEIGHTS, AdapterFiles, file_sha256
from kasatune.errors import CheckError
from kasatune.weights.fingerprint import parameters_sha256

CERTIFICATE = "certificate.json"
_WITHOUT_TAILS = ("peft-kasa", "authors")


def output_parity(before: Outputs, after: Outputs) -> dict[str, Any]:
    """Max |y_1 - y_2| and mean |y_1 - y_2| over the outputs for the fixed inputs, and the limit that the dtype sets."""
    difference = (before.values - after.values).abs()
    largest = float(before.values.abs().max())
    dtype = max((before.dtype, after.dtype), key=lambda name: OUTPUT_LIMITS.get(name, 0.0))
    return {
        "inputs": {"seed": SEED, "shape": [ROWS, LENGTH]},
        "dtype": dtype,
        "largest_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "largest_output": largest,
        "limit": OUTPUT_LIMITS.get(dtype, OUTPUT_LIMITS["bfloat16"]) * largest,
    }


def update_parity(source: tuple[AdapterFiles, str], made: tuple[AdapterFiles, str]) -> dict[str, Any]:
    """The largest ||dW_1 - dW_2||_F / ||dW_1||_F over the layers of an adapter and of what was made from it."""
    tails = not {source[1], made[1]} & set(_WITHOUT_TAILS)
    ours, theirs = update_factors(*source, tails=tails), update_factors(*made, tails=tails)
    if set(ours) != set(theirs):
        raise CheckError(f"the conversion lost or gained layers: {sorted(set(ours) ^ set(theirs))}")
    differences = {name: update_difference(ours[name], theirs[name]) for name in ours}
    worst = max(differences, key=lambda name: differences[name])
    return {
        "includes_what_is_dropped": tails,
        "largest_relative_difference": differences[worst],
        "layer": worst,
        "limit": UPDATE_LIMIT,
    }


def describe_base(base: nn.Module, adapter: AdapterFiles) -> dict[str, Any]:
    """Class and SHA-256 of an untouched base, what the adapter itself brings left out.

    A quantized base has no SHA-256, because its kernels rearrange its weights, another machine's otherwise; nor has one
    that is partly offloaded.
    """
    own = own_parameters(adapter)
    unsteady = is_quantized(base) or any(parameter.is_meta for parameter in base.parameters())
    parameters = ((name, tensor) for name, tensor in sorted(base.named_parameters()) if name not in own)
    return {"class": type(base).__name__, "sha256": None if unsteady else parameters_sha256(parameters)}


def certificate(
    source: Source,
    to: str,
    directory: Path,
    updates: dict[str, Any],
    outputs: dict[str, Any] | None,
    lost: Recompressed | None,
    base: dict[str, Any] | None,
) -> dict[str, Any]:
    """What is known of a conversion, as plain data without dates: equal conversions have equal certificates.

    Args:
        source: what was converted.
        to: the format that came out.
        directory: where it was written.
        updates: from `update_parity`.
        outputs: from `output_parity`; None where they could not be measured.
        lost: the errors of a conversion to a smaller rank.
        base: from `describe_base`; None where there was none.
    """
    config = source.files.config
    record: dict[str, Any] = {
        "from": source.found,
        "to": to,
        "exact": lost is None,
        "updates": updates,
        "outputs": outputs if outputs is not None else {"measured": False, "reason": source.reason},
        "base": {
            "name": config.get("base_model_name_or_path"),
            "fingerprint": config.get("base_fingerprint"),
            **(base or {"class": None, "sha256": None}),
        },
        "files": {name: file_sha256(directory / name) for name in (CONFIG, WEIGHTS)},
        "versions": versions(),
    }
    if lost is not None:
        record["relative_error"] = lost.relative_error
        record["layers"] = {name: error._asdict() for name, error in lost.layers.items()}
    return record


def trained_certificate(directory: Path, base: dict[str, Any]) -> dict[str, Any]:
    """What is known of an adapter that was trained and not converted: its files, and the base that it is for.

    Args:
        directory: of the adapter.
        base: the base as a certificate of a conversion describes it.
    """
    return {
        "from": "training",
        "to": "kasa",
        "base": base,
        "files": {name: file_sha256(directory / name) for name in (CONFIG, WEIGHTS)},
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What made a file: kasatune and the libraries that compute."""
    return {
        "kasatune": kasatune.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def require_parity(updates: dict[str, Any], outputs: dict[str, Any] | None, to: str) -> None:
    """Refuse an exact conversion that differs by more than rounding.

    Raises:
        CheckError: with the figure and its limit.
    """
    found, limit = updates["largest_relative_difference"], updates["limit"]
    if not found <= limit:
        raise CheckError(
            f"the conversion to {to!r} changes the update of {updates['layer']} by {found:.2g} of its norm, more than "
            f"rounding explains (limit {limit:g}); nothing was written"
        )
    if outputs is not None and not outputs["largest_difference"] <= outputs["limit"]:
        raise CheckError(
            f"the conversion to {to!r} changes the model's outputs by {outputs['largest_difference']:.3g}, more than "
            f"{outputs['dtype']} explains (limit {outputs['limit']:.3g}); nothing was written"
        )


def require_stated(updates: dict[str, Any], lost: Recompressed) -> None:
    """Refuse a smaller adapter that loses more than its singular values say.

    Raises:
        CheckError: with both figures.
    """
    stated = max(error.relative_error for error in lost.layers.values())
    found = updates["largest_relative_difference"]
    if not abs(found - stated) <= UPDATE_LIMIT + 1e-3 * stated:
        raise CheckError(
            f"the smaller adapter loses {found:.3g} of the update of {updates['layer']}, its singular values say "
            f"{stated:.3g} at most; nothing was written"
        )

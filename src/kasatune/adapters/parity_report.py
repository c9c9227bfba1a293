"""Measure how near a converted adapter is to its source, refuse it if it is too far, and certify it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from kasatune.adapters.adapter_files import CONFIG, WEIGHTS, AdapterFiles, file_sha256
from kasatune.adapters.certificate import (
    BaseRecord,
    Certificate,
    OutputParity,
    UpdateParity,
    library_versions,
)
from kasatune.adapters.format_conversion import WITHOUT_TAILS, Source
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
from kasatune.adapters.reduce_rank import ReducedAdapter
from kasatune.errors import CheckError
from kasatune.weights.fingerprint import parameters_sha256


def output_parity(before: Outputs, after: Outputs) -> OutputParity:
    """Max and mean |y_1 - y_2| over the outputs for the fixed inputs, and the limit that the dtype sets."""
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


def update_parity(source: tuple[AdapterFiles, str], result: tuple[AdapterFiles, str]) -> UpdateParity:
    """The largest ||dW_1 - dW_2||_F / ||dW_1||_F over the layers of two adapters, each given with its format.

    Raises:
        CheckError: they have different layers.
    """
    tails = not {source[1], result[1]} & set(WITHOUT_TAILS)
    ours, theirs = update_factors(*source, tails=tails), update_factors(*result, tails=tails)
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


def class_and_sha256(base: nn.Module, adapter: AdapterFiles) -> tuple[str, str | None]:
    """Class of an unadapted base, and SHA-256 of its parameters without those that the adapter brings.

    A quantized base has no SHA-256, because kernels pack its weights differently on other machines; neither has a base
    that is partly offloaded.
    """
    own = own_parameters(adapter.tensors)
    unsteady = is_quantized(base) or any(parameter.is_meta for parameter in base.parameters())
    parameters = ((name, tensor) for name, tensor in sorted(base.named_parameters()) if name not in own)
    return type(base).__name__, None if unsteady else parameters_sha256(parameters)


def conversion_certificate(
    source: Source,
    to: str,
    directory: Path,
    updates: UpdateParity,
    outputs: OutputParity | None,
    reduced: ReducedAdapter | None,
    base: tuple[str, str | None] | None,
) -> Certificate:
    """The certificate of a conversion.

    Args:
        source: what was converted.
        to: the resulting format.
        directory: where it was written.
        updates: from `update_parity`.
        outputs: from `output_parity`; None if they could not be measured.
        reduced: the errors of a conversion to a smaller rank.
        base: from `class_and_sha256`; None if there was no base.
    """
    config = source.files.config
    base_class, sha256 = base or (None, None)
    certificate: Certificate = {
        "from": source.read_as,
        "to": to,
        "exact": reduced is None,
        "updates": updates,
        "outputs": outputs if outputs is not None else {"measured": False, "reason": source.reason},
        "base": {
            "name": config.get("base_model_name_or_path"),
            "fingerprint": config.get("base_fingerprint"),
            "class": base_class,
            "sha256": sha256,
        },
        "files": adapter_digests(directory),
        "versions": library_versions(),
    }
    if reduced is not None:
        certificate["relative_error"] = reduced.relative_error
        certificate["layers"] = {name: error._asdict() for name, error in reduced.layers.items()}
    return certificate


def trained_certificate(directory: Path, base: BaseRecord) -> Certificate:
    """The certificate of an adapter that was trained, not converted.

    Args:
        directory: of the adapter.
        base: the base as the certificate of a conversion describes it.
    """
    return {
        "from": "training",
        "to": "kasa",
        "base": base,
        "files": adapter_digests(directory),
        "versions": library_versions(),
    }


def adapter_digests(directory: Path) -> dict[str, str]:
    """SHA-256 of the files of an adapter."""
    return {name: file_sha256(directory / name) for name in (CONFIG, WEIGHTS)}


def require_parity(updates: UpdateParity, outputs: OutputParity | None, to: str) -> None:
    """Refuse an exact conversion that differs by more than rounding.

    Raises:
        CheckError: with the difference and its limit.
    """
    largest, limit = updates["largest_relative_difference"], updates["limit"]
    if not largest <= limit:
        raise CheckError(
            f"the conversion to {to!r} changes the update of {updates['layer']} by {largest:.2g} of its norm, more "
            f"than rounding explains (limit {limit:g}); nothing was written"
        )
    if outputs is not None and not outputs["largest_difference"] <= outputs["limit"]:
        raise CheckError(
            f"the conversion to {to!r} changes the model's outputs by {outputs['largest_difference']:.3g}, more than "
            f"{outputs['dtype']} explains (limit {outputs['limit']:.3g}); nothing was written"
        )


def require_stated_loss(updates: UpdateParity, reduced: ReducedAdapter) -> None:
    """Refuse an adapter of reduced rank that loses more than its dropped singular values account for.

    Raises:
        CheckError: with both errors.
    """
    stated = max(error.relative_error for error in reduced.layers.values())
    measured = updates["largest_relative_difference"]
    if not abs(measured - stated) <= UPDATE_LIMIT + 1e-3 * stated:
        raise CheckError(
            f"the smaller adapter loses {measured:.3g} of the update of {updates['layer']}, its singular values say "
            f"{stated:.3g} at most; nothing was written"
        )

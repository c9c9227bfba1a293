"""The tails of many weights by activation, from the moments that were measured, or as chosen by sensitivity."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kasatune.errors import InputError
from kasatune.io.progress import progress_counter
from kasatune.kasa.truncation.compute_tails import TailRequest
from kasatune.kasa.truncation.measure_activations import Activations
from kasatune.kasa.truncation.tail_store import TailDirectory, TailKey
from kasatune.linalg import TailSVD
from kasatune.linalg.activation_tail import ActivationTail, activation_tail
from kasatune.linalg.threads import side_by_side
from kasatune.weights.fingerprint import sketch_distance, sketch_tolerance
from kasatune.wording import counted

_BATCH_ENTRIES = 2**24  # of the weights that are in memory together


def compute_activation_tails(
    requests: Iterable[TailRequest], total: int, activations: Activations
) -> tuple[dict[str, TailSVD], dict[str, dict[str, Any]]]:
    """The tail of every requested weight, by layer name, and what to state about it in the configuration.

    Args:
        requests: consumed one at a time, so that weights opened by the iterator need not be in memory together.
        total: the number of requests.
        activations: measured on the same base.

    Returns:
        The tails; and by layer the two eigenvalues at the cut, and the share E||T x||^2 / E||W x||^2 of the layer's
        output that is dropped.

    Raises:
        InputError: the activations are of another base model or of other layers, or measured with drop=0.
        ModelError: drop is out of range for a weight, or values are not finite; by name.
    """
    results: dict[str, ActivationTail] = {}
    batch: list[TailRequest] = []
    with progress_counter("choosing what activations use least", total) as advance:
        for request in requests:
            _require_same_base(request, activations)
            if request.name not in activations.moments:
                raise InputError(
                    f"{request.name} was calibrated with drop=0, which measures nothing to drop by, and drop is now "
                    f"{request.drop}: call calibrate again with the final drop"
                )
            batch.append(request)
            del request  # the batch alone holds the weight
            if sum(queued.W.numel() for queued in batch) >= _BATCH_ENTRIES:
                _compute(batch, activations, results, advance)
        _compute(batch, activations, results, advance)
    layers = {name: {"cut": list(result.cut), "share": result.share} for name, result in results.items()}
    return {name: result.tail for name, result in results.items()}, layers


def saved_activation_tails(
    requests: Iterable[TailRequest], directory: str | Path
) -> tuple[dict[str, TailSVD], dict[str, Any]]:
    """The tails that `kasatune decompose --truncate-by activation` wrote, by layer name, and what they were chosen on.

    Args:
        requests: the weights.
        directory: written by that command.

    Returns:
        The tails, and `KasaConfig.calibration_used`.

    Raises:
        InputError: it is no such directory.
        ModelError: a weight is missing from it, or was decomposed with another rank; by name.
    """
    saved = TailDirectory(Path(directory))
    tails: dict[str, TailSVD] = {}
    layers: dict[str, dict[str, Any]] = {}
    for request in requests:
        key = TailKey.of(request.W, request.drop)
        tails[request.name] = saved.get_by_activation(key, request.name)
        entry = saved.layer(key.digest)
        layers[request.name] = {"cut": entry["cut"], "share": entry["share"]}
    return tails, {**saved.index["calibration"], "layers": layers}


def sensitivity_tails(
    requests: Iterable[TailRequest], activations: Activations
) -> tuple[dict[str, TailSVD], dict[str, dict[str, Any]]]:
    """The components that calibration chose by sensitivity, by layer name, and what to state about them.

    Args:
        requests: the weights, to compare them with those that were calibrated.
        activations: measured on the same base by `measure_sensitivity`.

    Raises:
        InputError: the activations are of another base model, of other layers, or chose more triplets than `drop`.
    """
    components = activations.components
    if components is None:
        raise InputError(
            "the configuration was calibrated for another truncate_by than 'sensitivity': call calibrate(base, config, "
            "batches) again, with labelled batches"
        )
    tails: dict[str, TailSVD] = {}
    for request in requests:
        _require_same_base(request, activations)
        tail = components.tails.get(request.name)
        if tail is None:
            continue
        if len(tail.S) > request.drop:
            raise InputError(
                f"{request.name}: {counted(len(tail.S), 'triplet')} were chosen by sensitivity, and drop is now "
                f"{request.drop}: call calibrate again with the final drop"
            )
        tails[request.name] = tail
    return tails, {name: dict(entry) for name, entry in components.layers.items() if name in tails}


def _compute(
    batch: list[TailRequest],
    activations: Activations,
    results: dict[str, ActivationTail],
    advance: Callable[[], None],
) -> None:
    """Compute a batch into `results`, and empty it."""

    def compute(request: TailRequest) -> ActivationTail:
        return activation_tail(request.W, activations.moments[request.name], request.drop, name=request.name)

    computed = side_by_side(compute, batch, advance)
    results.update(zip((request.name for request in batch), computed, strict=True))
    batch.clear()


def _require_same_base(request: TailRequest, activations: Activations) -> None:
    sketch = activations.base.get(request.name)
    if sketch is None:
        raise InputError(
            f"{request.name} was not calibrated: the configuration was changed after calibrate(base, config, ...); "
            "call calibrate again with the final target_modules"
        )
    distance = sketch_distance(request.W, sketch)
    if distance is None or distance > sketch_tolerance(request.W.dtype, None, sketch):
        raise InputError(
            f"{request.name}: the configuration was calibrated on another base model; call calibrate on this one"
        )

"""The tails of many weights by activation: `linalg.activation_tail` of each, from the moments that were measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from kasatune.errors import InputError
from kasatune.io.progress import progress_counter
from kasatune.kasa.truncation.compute_tails import TailRequest
from kasatune.kasa.truncation.measure_activations import Activations
from kasatune.linalg import TailSVD
from kasatune.linalg.activation_tail import ActivationTail, activation_tail
from kasatune.linalg.threads import side_by_side
from kasatune.weights.fingerprint import sketch_distance, sketch_tolerance

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
        InputError: the activations are of another base model or of other layers.
        ModelError: drop is out of range for a weight, or values are not finite; by name.
    """
    results: dict[str, ActivationTail] = {}
    batch: list[TailRequest] = []
    with progress_counter("choosing what activations use least", total) as advance:
        for request in requests:
            _require_same_base(request, activations)
            batch.append(request)
            del request  # the batch alone holds the weight
            if sum(queued.W.numel() for queued in batch) >= _BATCH_ENTRIES:
                _compute(batch, activations, results, advance)
        _compute(batch, activations, results, advance)
    layers = {name: {"cut": list(result.cut), "share": result.share} for name, result in results.items()}
    return {name: result.tail for name, result in results.items()}, layers


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

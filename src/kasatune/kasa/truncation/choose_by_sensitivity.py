"""truncate_by="sensitivity": drop the triplets whose removal lowers the task's loss, measured on held-back rows."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kasatune.errors import InputError
from kasatune.io.progress import progress_counter
from kasatune.kasa.truncation.measure_activations import Activations, ChosenComponents, measure, require_loaded
from kasatune.kasa.truncation.undisturbed_model import on_device, undisturbed
from kasatune.linalg.activation_tail import WhitenedTriplets, weakest_triplets
from kasatune.linalg.spectrum import product_svd
from kasatune.linalg.tail import TailSVD
from kasatune.linalg.threads import side_by_side
from kasatune.weights.base_weight import BaseWeight

CANDIDATE_SHARE = 0.01
"""Candidates are the triplets that carry this last share of a layer's E||W x||^2.

Of stronger triplets the first order says nothing: it picks leading ones, whose removal breaks the model.
"""

_HELD_BACK = 4  # every fourth batch
_HALVINGS = 6  # of the number of candidates, for the prefixes that are tried

Batch = Mapping[str, Any]
Order = list[tuple[float, str, int]]


def measure_sensitivity(
    model: nn.Module,
    layers: Mapping[str, BaseWeight],
    batches: Iterable[Batch] | None,
    drops: Mapping[str, int],
    *,
    inputs: bool = False,
    source: str = "batches",
) -> Activations:
    """Choose the components by their effect on the task's loss, on labelled rows.

        L(W - T_i) - L(W) = -g_i s_i + O(s_i^2),   g_i s_i = <dL/dW, T_i>

    T_i are the triplets of W in the whitened basis (`weakest_triplets`) that carry the last 1 % of E||W x||^2. Each
    layer offers the d with the smallest prediction. They form one order over all layers, the smallest prediction first,
    and are removed together: of the prefixes tried, that with the smallest loss on held-back rows is dropped, which may
    be the empty one.

    Activations and gradients are measured on three quarters of the batches, losses on the rest; a single batch is split
    by its rows. Gradients come from the outputs of the layers, so that frozen and quantized weights need none.

    Args:
        model: the base model; `model(**batch)` must return a `loss`, the mean over its rows or labels.
        layers: the weights, by layer name.
        batches: with labels.
        drops: d by layer name.
        inputs: also measure the inputs of every layer, for `leading_directions`.
        source: as in `measure`.

    Returns:
        The activations, with `components`.

    Raises:
        InputError: there are no batches, fewer than two rows, no labels, or a layer has no gradient.
    """
    start = time.perf_counter()
    if batches is None:
        raise InputError(
            "truncate_by='sensitivity' needs labelled rows of the task: pass calibrate(base, config, batches) with "
            "batches that hold labels, or use truncate_by='activation', which needs none"
        )
    require_loaded(layers)
    fitted, held_back = _split(batches)
    activations = measure(model, layers, fitted, inputs=inputs, source=source)

    def candidates(name: str) -> WhitenedTriplets:
        return weakest_triplets(layers[name].read(), activations.moments[name], CANDIDATE_SHARE, name=name)

    dropping = [name for name in layers if drops[name]]
    with progress_counter("finding candidates", len(dropping)) as advance:
        triplets = dict(zip(dropping, side_by_side(candidates, dropping, advance), strict=True))
    triplets = {name: weakest for name, weakest in triplets.items() if len(weakest.energy)}
    predicted = _predicted_changes(model, layers, triplets, fitted)
    order = _one_order(predicted, drops)
    losses = _losses_of_prefixes(model, layers, triplets, order, held_back)
    length = min(losses, key=lambda tried: (losses[tried], tried))
    removed = _by_layer(order[:length])
    components = ChosenComponents(
        tails={name: _tail(triplets[name], numbers) for name, numbers in removed.items()},
        layers={
            name: {
                "dropped": len(numbers),
                "predicted": sum(float(predicted[name][number]) for number in numbers),
                "share": float(triplets[name].energy[numbers].sum()) / triplets[name].total,
            }
            for name, numbers in removed.items()
        },
        losses=losses,
        candidates=len(order),
    )
    return dataclasses.replace(activations, components=components, seconds=time.perf_counter() - start)


def _split(batches: Iterable[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Batches to measure on, and held-back ones: every fourth, or the last; a single batch is split by its rows."""
    given = list(batches)
    if len(given) == 1:
        rows = _rows(given[0])
        first = max(1, rows - max(1, rows // _HELD_BACK))
        if rows > 1:
            return [_part(given[0], 0, first)], [_part(given[0], first, rows)]
    if len(given) < 2:
        raise InputError(
            f"truncate_by='sensitivity': {'one row' if given else 'no batch'} was given, and rows to measure gradients "
            "on and others to measure losses on are needed: pass at least two, better 64 rows of the task"
        )
    held = [n for n in range(len(given)) if n % _HELD_BACK == _HELD_BACK - 1] or [len(given) - 1]
    return [batch for n, batch in enumerate(given) if n not in held], [given[n] for n in held]


def _rows(batch: Batch) -> int:
    tensors = [value for value in batch.values() if isinstance(value, Tensor) and value.ndim]
    return len(tensors[0]) if tensors else 1


def _part(batch: Batch, first: int, last: int) -> Batch:
    rows = _rows(batch)
    return {
        key: value[first:last] if isinstance(value, Tensor) and value.ndim and len(value) == rows else value
        for key, value in batch.items()
    }


def _weight(batch: Batch) -> int:
    """The number of items that a batch's loss is the mean of: tokens with a label, or rows."""
    labels = batch.get("labels")
    if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.ndim > 1:
        return int((labels != -100).sum())
    return _rows(batch)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    output: Any = model(**on_device(batch, model))
    loss = getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        raise InputError(
            f"truncate_by='sensitivity' needs the task's loss, and {type(model).__name__} returned none for a batch "
            f"with {', '.join(batch)}: pass calibrate(base, config, batches) with batches that hold labels"
        )
    if loss.ndim or not bool(torch.isfinite(loss)):
        raise InputError(
            f"truncate_by='sensitivity': the model's loss on a calibration batch is {loss.detach().tolist()}, and must "
            "be one finite number: check the labels, or calibrate in float32"
        )
    return loss


def _predicted_changes(
    model: nn.Module,
    layers: Mapping[str, BaseWeight],
    triplets: Mapping[str, WhitenedTriplets],
    batches: Sequence[Batch],
) -> dict[str, Tensor]:
    """-g_i s_i = -<dL/dW, T_i> of every candidate: by layer name, (m,), float64 on the CPU."""
    sums = {name: torch.zeros(len(own.energy), dtype=torch.float64) for name, own in triplets.items()}
    items = 0
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        for parameter in model.parameters():
            parameter.requires_grad = False  # the outputs of the first layers become the leaves
        recorded: list[tuple[str, Tensor, Tensor]] = []
        for name in triplets:
            hook = _recorder(name, recorded)
            stack.callback(layers[name].layer.register_forward_hook(hook).remove)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        with progress_counter("measuring gradients", len(batches)) as advance:
            for batch in batches:
                recorded.clear()
                loss, weight = _loss(model, batch), _weight(batch)
                outputs = [output for _, _, output in recorded]
                used = torch.autograd.grad(loss, outputs, allow_unused=True) if loss.requires_grad else ()
                gradients = cast(tuple[Tensor | None, ...], used)
                for (name, x, _), gradient in zip(recorded, gradients, strict=bool(gradients)):
                    if gradient is not None:
                        sums[name] -= weight * _directional(gradient, x, triplets[name], layers[name]).cpu()
                items += weight
                advance()
        recorded.clear()
    return {name: total / max(items, 1) for name, total in sums.items()}


def _recorder(name: str, recorded: list[tuple[str, Tensor, Tensor]]) -> Callable[..., Tensor | None]:
    def record(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        x: Tensor = inputs[0]
        if not output.requires_grad:
            if x.requires_grad:
                raise InputError(
                    f"{name} ({type(module).__name__}) passes no gradient to its inputs, which "
                    "truncate_by='sensitivity' needs: use truncate_by='activation', or a base that is not quantized"
                )
            output = output.detach().requires_grad_()
        recorded.append((name, x.detach(), output))
        return output

    return record


def _directional(gradient: Tensor, x: Tensor, triplets: WhitenedTriplets, weight: BaseWeight) -> Tensor:
    """<dL/dW, T_i> = sum over tokens of (left_i^T dL/dy) (right_i x), (m,), float64."""
    delta, x = (_channels_last(values, weight).flatten(0, -2).to(triplets.left) for values in (gradient, x))
    return ((delta @ triplets.left) * (x @ triplets.right.mT)).sum(0, dtype=torch.float64)


def _channels_last(values: Tensor, weight: BaseWeight) -> Tensor:
    return values.movedim(-1 - weight.pointwise, -1) if weight.pointwise else values


def _one_order(predicted: Mapping[str, Tensor], drops: Mapping[str, int]) -> Order:
    """(predicted change, layer, number) of the d best candidates of each layer, the smallest prediction first."""
    order: Order = []
    for name, changes in predicted.items():
        best = torch.argsort(changes, stable=True)[: drops[name]].tolist()
        order += [(float(changes[number]), name, number) for number in best]
    return sorted(order, key=lambda entry: entry[0])


def _lengths(order: Order) -> list[int]:
    """The prefixes that are tried: none, all, those that are predicted to lower the loss, and halvings of all."""
    total = len(order)
    lowering = sum(change < 0 for change, _, _ in order)
    return sorted({0, total, lowering, *(total >> halving for halving in range(1, _HALVINGS + 1))})


def _losses_of_prefixes(
    model: nn.Module,
    layers: Mapping[str, BaseWeight],
    triplets: Mapping[str, WhitenedTriplets],
    order: Order,
    batches: Sequence[Batch],
) -> dict[int, float]:
    """The loss on held-back rows by the number of candidates that are removed, all of a prefix together."""
    lengths = _lengths(order)
    losses: dict[int, float] = {}
    with undisturbed(model), torch.no_grad(), progress_counter("measuring losses", len(lengths)) as advance:
        for length in lengths:
            with _removed(layers, triplets, order[:length]):
                weights = [_weight(batch) for batch in batches]
                total = sum(
                    weight * float(_loss(model, batch))
                    for weight, batch in zip(weights, batches, strict=True)
                    if weight
                )
            losses[length] = total / max(sum(weights), 1)
            advance()
    return losses


@contextmanager
def _removed(
    layers: Mapping[str, BaseWeight], triplets: Mapping[str, WhitenedTriplets], prefix: Order
) -> Generator[None]:
    """A context in which the layers compute y = W x - sum_i T_i x."""
    with ExitStack() as stack:
        for name, numbers in _by_layer(prefix).items():
            hook = _subtract(triplets[name].left[:, numbers], triplets[name].right[numbers], layers[name])
            stack.callback(layers[name].layer.register_forward_hook(hook).remove)
        yield


def _subtract(left: Tensor, right: Tensor, weight: BaseWeight) -> Callable[..., Tensor]:
    def subtract(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x = _channels_last(inputs[0], weight).to(right)
        change = F.linear(F.linear(x, right), left)
        if weight.pointwise:
            change = change.movedim(-1, -1 - weight.pointwise)
        return output - change.to(output.dtype)

    return subtract


def _by_layer(prefix: Order) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for _, name, number in prefix:
        numbers.setdefault(name, []).append(number)
    return numbers


def _tail(triplets: WhitenedTriplets, numbers: list[int]) -> TailSVD:
    return TailSVD(*product_svd(triplets.left[:, numbers], triplets.right[numbers]))

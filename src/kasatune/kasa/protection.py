"""KasaConfig(protect=...): keep A out of the input directions that the base's activations use most.

    A <- A - (A K) K^T    when the adapter is created and after every optimizer step

K (in, c) holds the c leading eigenvectors of C = E[x x^T], the second moments of the layer's inputs. A then ignores
these directions, so that the update B diag(sigma) A leaves the layer's output on them as it was. K exists while
training only: what is saved and exported is an ordinary A, B, sigma.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from kasatune.distributed.zero3 import is_partitioned
from kasatune.errors import InputError
from kasatune.kasa.layer import LIVE_LAYERS, KasaLayer, kasa_layers
from kasatune.kasa.orthonormal import retract
from kasatune.kasa.truncation.compute_tails import in_first_process, is_calibration_shared
from kasatune.kasa.truncation.measure_activations import Activations, measure_on
from kasatune.kasa.truncation.protected_directions import protected_directions

_plans: weakref.WeakKeyDictionary[Optimizer, _Plan] = weakref.WeakKeyDictionary()


def protect(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]] | None = None,
    *,
    adapter_name: str = "default",
    seed: int = 0,
) -> None:
    """Measure the protected directions of a loaded adapter again, to continue its training.

    Directions are not saved with an adapter. Text that the base writes itself, with the same seed, gives the directions
    of the first training again. A is projected at once.

    Args:
        model: with a KaSA adapter trained with KasaConfig(protect=...).
        batches: as in `calibrate`; None for text of the model's own.
        adapter_name: the adapter.
        seed: of the text without batches.

    Raises:
        InputError: the adapter does not exist or has protect=0, or the model cannot be calibrated.
    """
    layers = {
        name: layer
        for name, layer in kasa_layers(model)
        if adapter_name in layer.settings and layer.settings[adapter_name].protect
    }
    if not layers:
        raise InputError(
            f"protect: no layer of the model has an adapter {adapter_name!r} that was created with "
            "KasaConfig(protect=...)"
        )
    weights = {name: layer.base for name, layer in layers.items()}
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]
    assert isinstance(base, nn.Module)

    def work() -> Activations:
        return measure_on(base, weights, batches, seed, inputs=True, tails=False)

    activations = in_first_process(work) if is_calibration_shared() else work()
    counts = {name: layer.settings[adapter_name].protect for name, layer in layers.items()}
    for name, directions in protected_directions(activations, counts).items():
        layers[name].protected[adapter_name] = directions.K
    project(layers.values(), adapter_name)


@torch.no_grad()
def project(layers: Iterable[KasaLayer], adapter_name: str) -> None:
    """A <- A - (A K) K^T in every layer whose adapter has protected directions; orthonormal factors stay so."""
    chosen = [layer for layer in layers if adapter_name in layer.protected]
    _Plan.of([(layer, adapter_name) for layer in chosen]).run()
    retract(chosen, adapter_name)


def install_projection_hook() -> None:
    """Make every optimizer of this process project the A that it updates after its step."""
    register_optimizer_step_post_hook(_after_step)


def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    layers = [layer for layer in LIVE_LAYERS if _is_protected(layer)]
    if not layers:
        return
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    active = [(layer, layer.active_adapters[0]) for layer in layers]
    active = [(layer, name) for layer, name in active if id(layer.kasa_A[name]) in stepped]
    if not active:
        return
    _report_unmeasured(optimizer, active)
    active = [(layer, name) for layer, name in active if name in layer.protected]
    plan = _plans.get(optimizer)
    if plan is None or not plan.is_for(active):
        plan = _plans[optimizer] = _Plan.of(active)
    with torch.no_grad():
        plan.run()


def _is_protected(layer: KasaLayer) -> bool:
    # A layer under construction is in LIVE_LAYERS already and has no settings yet.
    settings = layer.__dict__.get("settings")
    if not settings or not layer.active_adapters:
        return False
    active = settings.get(layer.active_adapters[0])
    return active is not None and active.protect > 0 and layer.kasa_A[layer.active_adapters[0]].requires_grad


def _report_unmeasured(optimizer: Optimizer, active: Sequence[tuple[KasaLayer, str]]) -> None:
    missing = [name for layer, name in active if name not in layer.protected]
    if not missing or getattr(optimizer, "_kasa_unprotected", False):
        return
    optimizer._kasa_unprotected = True  # pyright: ignore[reportAttributeAccessIssue]
    warnings.warn(
        f"adapter {missing[0]!r} was loaded, and the directions that its A must not use are not saved with an adapter: "
        "this step used them. Call kasatune.protect(model) before training continues, which measures them again.",
        stacklevel=4,
    )


@dataclass(frozen=True)
class _Batch:
    """Matrices A of equal shape whose projections are computed together.

    Attributes:
        K: (groups, in, c), float16.
        A: by group, the parameters that share its K.
    """

    K: Tensor
    A: list[list[Tensor]]

    def run(self) -> None:
        stacked = torch.stack([torch.cat([_local(A) for A in group]) for group in self.A])
        wide = stacked.to(torch.promote_types(stacked.dtype, torch.float32))
        K = self.K.to(wide.dtype)
        projected = wide - (wide @ K) @ K.mT
        height = stacked.shape[1] // len(self.A[0])
        if height == 0:  # all rows of A are in other processes
            return
        targets = [_local(A) for group in self.A for A in group]
        sources = [part for group in projected.to(stacked.dtype) for part in group.split(height)]
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)


@dataclass(frozen=True)
class _Plan:
    """The batches of one optimizer's layers.

    Attributes:
        batches: of equal shapes each.
        key: identities of what the batches were built from.
    """

    batches: list[_Batch]
    key: list[tuple[int, int]]

    @classmethod
    def of(cls, active: Sequence[tuple[KasaLayer, str]]) -> _Plan:
        """Batch the active adapters; their layers then hold parts of the stacked K, so that it exists once."""
        by_K: dict[int, list[tuple[KasaLayer, str]]] = {}
        for layer, name in active:
            by_K.setdefault(id(layer.protected[name]), []).append((layer, name))
        alike: dict[Any, list[list[tuple[KasaLayer, str]]]] = {}
        for members in by_K.values():
            layer, name = members[0]
            shapes = tuple(_checked(layer.kasa_A[name]).shape for layer, name in members)
            A, K = layer.kasa_A[name], layer.protected[name]
            # layers that share their inputs may differ in rank, and then take turns
            for group in [members] if len(set(shapes)) == 1 else [[member] for member in members]:
                key = (tuple(_local(m.kasa_A[n]).shape for m, n in group), tuple(K.shape), A.device, A.dtype)
                alike.setdefault(key, []).append(group)
        batches: list[_Batch] = []
        for groups in alike.values():
            layer, name = groups[0][0]
            K = torch.stack([g[0][0].protected[g[0][1]].to(layer.kasa_A[name].device) for g in groups])
            for part, group in zip(K, groups, strict=True):
                for member, adapter in group:
                    member.protected[adapter] = part
            batches.append(_Batch(K, [[member.kasa_A[adapter] for member, adapter in group] for group in groups]))
        return cls(batches, _key(active))

    def is_for(self, active: Sequence[tuple[KasaLayer, str]]) -> bool:
        """Whether the plan was built from exactly these parameters and directions."""
        return self.key == _key(active)

    def run(self) -> None:
        """Project every A once."""
        for batch in self.batches:
            batch.run()


def _key(active: Sequence[tuple[KasaLayer, str]]) -> list[tuple[int, int]]:
    return sorted((id(layer.kasa_A[name]), id(layer.protected[name])) for layer, name in active)


def _local(A: Tensor) -> Tensor:
    """The rows of A that this process holds."""
    return A.to_local() if isinstance(A, DTensor) else A.data


def _checked(A: Tensor) -> Tensor:
    if is_partitioned(A):
        raise InputError("protect: DeepSpeed ZeRO-3 partitions A, whose rows are then not complete: use FSDP2 or DDP")
    if isinstance(A, DTensor) and any(isinstance(p, Shard) and p.dim != 0 for p in A.placements):
        raise InputError("protect: A is sharded along its columns; shard it along its rows, as fully_shard does")
    return _local(A)

"""What a merge does to each tensor of a base, by the name that the model has for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kasatune.adapters.conversion import as_native
from kasatune.adapters.lora_export import stock_layers, to_lora
from kasatune.adapters.native_format import scaling_of, trained_factors
from kasatune.adapters.storage import PREFIX, AdapterFiles, listed
from kasatune.errors import AdapterError, ModelError
from kasatune.kasa.functional import Factors, drop_count, update
from kasatune.linalg import tail_svd
from kasatune.weights.base_weight import pointwise_dimensions
from kasatune.weights.fingerprint import sketch_distance, sketch_tolerance

Change = Callable[[Tensor], Tensor]
_ROWS = 64


@dataclass
class Plan:
    """What becomes of the base's tensors.

    Attributes:
        changes: W' - W as a function of W (out, in), by layer name.
        transposed: layers whose weight is stored as (in, out).
        whole: parameters that the adapter brings, by name.
        fingerprint: of the base that the adapter was made for, where it is known.
        rounding: filled in while writing: ||rounded(W') - W'||_F / ||W' - W||_F by layer name.
    """

    changes: dict[str, Change]
    transposed: set[str]
    whole: dict[str, Tensor]
    fingerprint: dict[str, Any]
    rounding: dict[str, float] = field(default_factory=dict)

    def merged(self, layer: str, stored: Tensor) -> Tensor:
        """W' in the layout and dtype in which the base stores W.

        Raises:
            AdapterError: W is not the weight that the adapter was made for.
        """
        W = stored.T if layer in self.transposed else stored.reshape(stored.shape[:2])
        if layer in self.fingerprint:
            found = sketch_distance(W, self.fingerprint[layer])
            if found is None or found > sketch_tolerance(W.dtype, None, self.fingerprint[layer]):
                raise AdapterError(
                    f"this is another base model than the adapter was made for: {layer} differs; name the right one "
                    "with --base"
                )
        wide = W.to(torch.promote_types(W.dtype, torch.float32))
        change = self.changes[layer](wide).to(wide.dtype)
        exact = wide + change
        if not bool(torch.isfinite(exact).all()):
            raise AdapterError(f"merging {layer} gives NaN or infinity")
        rounded = exact.to(W.dtype)
        norm = float(change.norm())
        lost = math.hypot(*(_lost(*rows) for rows in zip(*(t.split(_ROWS) for t in (rounded, W, change)), strict=True)))
        self.rounding[layer] = lost / norm if norm else 0.0
        return rounded.T if layer in self.transposed else rounded.reshape(stored.shape)


def plan_merge(files: AdapterFiles, kind: str, layers: list[str], model: nn.Module) -> Plan:
    """The plan for an adapter of one of the formats on a model of which only names and shapes are known.

    Raises:
        AdapterError: the adapter's layers or heads are not the model's.
    """
    modules = dict(model.named_modules())
    strange = [name for name in layers if not hasattr(modules.get(name), "weight")]
    if strange:
        raise AdapterError(f"{type(model).__name__} has no layer {listed(strange)}: the adapter is of another model")
    fingerprint = files.config.get("base_fingerprint") if kind == "kasa" else None
    changes, rest = _changes(files, kind)
    whole = {key.removeprefix(PREFIX).replace(".base_layer.", "."): tensor for key, tensor in rest.items()}
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    stray = [name for name in whole if name not in known]
    if stray:
        raise AdapterError(f"{type(model).__name__} has no parameter {listed(stray)}: the adapter is of another model")
    transposed = {name for name in layers if isinstance(modules[name], Conv1D)}
    for name in layers:
        _require_shape(name, changes[name], modules[name], transposed=name in transposed)
    return Plan(changes, transposed, whole, fingerprint if isinstance(fingerprint, dict) else {})


def _changes(files: AdapterFiles, kind: str) -> tuple[dict[str, Change], dict[str, Tensor]]:
    if kind in ("lora", "kasa"):
        stock, rest = stock_layers(files if kind == "lora" else to_lora(files))
        return {name: _Product(lora.B, lora.A) for name, lora in stock.items()}, rest
    native = as_native(files, kind, None)
    factors, rest = trained_factors(native.tensors)
    convention = native.config["convention"]
    return {name: _Truncation(f, scaling_of(native.config, name), convention) for name, f in factors.items()}, rest


@dataclass(frozen=True)
class _Product:
    """W' - W = B A."""

    B: Tensor
    A: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.B.shape[0], self.A.shape[1]

    def __call__(self, W: Tensor) -> Tensor:
        return self.B.to(W.dtype) @ self.A.to(W.dtype)


@dataclass(frozen=True)
class _Truncation:
    """W' - W = s B sigma A - tail(W), for adapters that leave the tail to their reader."""

    factors: Factors
    scaling: float
    convention: Any

    @property
    def shape(self) -> tuple[int, int]:
        return self.factors.B.shape[0], self.factors.A.shape[1]

    def __call__(self, W: Tensor) -> Tensor:
        change = update(Factors(*(f.to(W.dtype) for f in self.factors)), self.scaling)
        dropped = drop_count(*self.shape, self.factors.A.shape[0], self.convention)
        if dropped:
            tail = tail_svd(W, dropped)
            change = change - (tail.U * tail.S) @ tail.Vh
        return change


def _lost(rounded: Tensor, W: Tensor, change: Tensor) -> float:
    """||rounded - (W + change)||_F, the sum in float64."""
    return float((rounded.double() - (W.double() + change.double())).norm())


def _require_shape(name: str, change: Any, module: Any, *, transposed: bool) -> None:
    found = tuple(module.weight.shape[:2] if pointwise_dimensions(module) else module.weight.shape)
    wanted = change.shape[::-1] if transposed else change.shape
    if found != tuple(wanted):
        raise ModelError(
            f"{name} has shape {list(found)} in this base, the adapter was made for {list(wanted)}; name the right "
            "base with --base"
        )

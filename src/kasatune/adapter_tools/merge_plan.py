"""The plan of a merge: what happens to each weight of the base, from the tensors of an adapter."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kasatune.adapters.adapter_files import AdapterFiles, listed
from kasatune.adapters.embedding_tensors import Rows, base_name, embedding_parameters, split_embeddings
from kasatune.adapters.format_conversion import WITHOUT_TAILS, as_native
from kasatune.adapters.lora_export import StackedLora, folded_layers, stock_layers, to_lora
from kasatune.adapters.lora_settings import residual_init
from kasatune.adapters.native_format import require_untied, scaling_of, trained_factors
from kasatune.adapters.recognize_format import TITLES
from kasatune.adapters.residual_lora import StoredWeight, layer_residual
from kasatune.errors import AdapterError, ModelError
from kasatune.kasa.functional import Factors, drop_count, update
from kasatune.linalg import tail_svd
from kasatune.weights.base_weight import pointwise_dimensions
from kasatune.weights.fingerprint import sketch_distance, sketch_tolerance
from kasatune.weights.safetensors_reader import ModelCheckpoint, ties_of
from kasatune.wording import counted

_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class _LoraUpdate:
    """W' - W = B A."""

    B: Tensor
    A: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.B.shape[0], self.A.shape[1]

    def __call__(self, W: Tensor) -> Tensor:
        return self.B.to(W.dtype) @ self.A.to(W.dtype)


@dataclass(frozen=True)
class _ResidualUpdate:
    """W' - W = B A - s B0 A0, for initializations that subtract s B0 A0 from the base (PiSSA, OLoRA)."""

    lora: StackedLora
    config: dict[str, Any]
    init: str
    name: str
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.lora.B.shape[0], self.lora.A.shape[1]

    def __call__(self, W: Tensor) -> Tensor:
        stored = StoredWeight(W.T if self.transposed else W, self.transposed)
        taken = layer_residual(self.config, self.init, self.name, stored)
        return self.lora.B.to(W.dtype) @ self.lora.A.to(W.dtype) - taken.B @ taken.A


@dataclass(frozen=True)
class _TruncatingUpdate:
    """W' - W = s B sigma A - tail(W), for formats whose reader decomposes the base."""

    factors: Factors
    scaling: float
    convention: Any

    @property
    def shape(self) -> tuple[int, int]:
        return self.factors.B.shape[0], self.factors.A.shape[1]

    def __call__(self, W: Tensor) -> Tensor:
        change = update(Factors(*(f.to(W.dtype) for f in self.factors)), self.scaling)
        drop = drop_count(*self.shape, self.factors.A.shape[0], self.convention)
        if drop:
            tail = tail_svd(W, drop)
            change = change - (tail.U * tail.S) @ tail.Vh
        return change


Update = _LoraUpdate | _ResidualUpdate | _TruncatingUpdate


@dataclass
class MergePlan:
    """What happens to the tensors of the base.

    Attributes:
        updates: W' - W as a function of W (out, in), by layer name.
        transposed: layers whose weight is stored as (in, out).
        replaced: parameters that the adapter replaces entirely, by name.
        rows: rows of embeddings that it replaces, by the name of the parameter.
        fingerprint: sketches of the base that the adapter was made for, by layer name; empty if unknown.
        followers: names of tied weights that stay tied to a changed one, and are stored under its name.
        rounding: ||rounded(W') - W'||_F / ||W' - W||_F by layer name, filled in while writing.
    """

    updates: dict[str, Update]
    transposed: set[str]
    replaced: dict[str, Tensor]
    rows: dict[str, Rows]
    fingerprint: dict[str, Any]
    followers: set[str] = field(default_factory=set)
    rounding: dict[str, float] = field(default_factory=dict)

    def merged(self, layer: str, stored: Tensor) -> Tensor:
        """W' in the layout and dtype in which the base stores W.

        Raises:
            AdapterError: W is not the weight that the adapter was made for, or W' is not finite.
        """
        W = stored.T if layer in self.transposed else stored.reshape(stored.shape[:2])
        if layer in self.fingerprint:
            distance = sketch_distance(W, self.fingerprint[layer])
            if distance is None or distance > sketch_tolerance(W.dtype, None, self.fingerprint[layer]):
                raise AdapterError(
                    f"this is another base model than the adapter was made for: {layer} differs; name the right one "
                    "with --base"
                )
        wide = W.to(torch.promote_types(W.dtype, torch.float32))
        change = self.updates[layer](wide).to(wide.dtype)
        exact = wide + change
        if not bool(torch.isfinite(exact).all()):
            raise AdapterError(f"merging {layer} gives NaN or infinity")
        rounded = exact.to(W.dtype)
        norm = float(change.norm())
        row_blocks = zip(*(t.split(_ROWS_AT_ONCE) for t in (rounded, W, change)), strict=True)
        lost = math.hypot(*(_rounding_error(*block) for block in row_blocks))
        self.rounding[layer] = lost / norm if norm else 0.0
        return rounded.T if layer in self.transposed else rounded.reshape(stored.shape)


def plan_merge(
    files: AdapterFiles, kind: str, layers: list[str], model: nn.Module, repeated: Mapping[str, Tensor]
) -> MergePlan:
    """The plan for an adapter in format `kind`, on a model of which only names and shapes are known.

    Args:
        files: the adapter.
        kind: its format.
        layers: names of its layers.
        model: the base; may be on the meta device.
        repeated: base weights that the adapter holds; see `Header.repeated`.

    Raises:
        AdapterError: the model lacks a layer or a parameter that the adapter names, or a layer of a resized vocabulary
            is adapted.
        ModelError: a layer has another shape in the model.
    """
    modules = dict(model.named_modules())
    unknown = [name for name in layers if not hasattr(modules.get(name), "weight")]
    if unknown:
        raise AdapterError(f"{type(model).__name__} has no layer {listed(unknown)}: the adapter is of another model")
    transposed = {name for name in layers if isinstance(modules[name], Conv1D)}
    updates, rest = _updates(files, kind, transposed)
    for key, tensor in repeated.items():
        name = base_name(key).removesuffix(".weight")
        if name in layers and tensor.shape != modules[name].weight.shape:
            raise AdapterError(
                f"the adapter updates {name} of a vocabulary that was resized to "
                f"{counted(tensor.shape[0], 'token')}; resize the "
                "base and merge it with PEFT: PeftModel.from_pretrained(base, adapter).merge_and_unload()"
            )
    replaced, rows = split_embeddings(rest, repeated, files.config, ties_of(model))
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    unknown = [name for name in (*replaced, *rows) if name not in known]
    if unknown:
        raise AdapterError(
            f"{type(model).__name__} has no parameter {listed(unknown)}: the adapter is of another model"
        )
    init = residual_init(files.config) if kind == "lora" else None
    if init is not None or kind in WITHOUT_TAILS:
        require_untied(model, layers, TITLES[kind] if init is None else f"init_lora_weights={init!r}")
    for name in layers:
        _require_shape(name, updates[name].shape, modules[name], transposed=name in transposed)
    fingerprint = files.config.get("base_fingerprint") if kind == "kasa" else None
    return MergePlan(updates, transposed, replaced, rows, fingerprint if isinstance(fingerprint, dict) else {})


def _updates(
    files: AdapterFiles, kind: str, transposed: Collection[str]
) -> tuple[dict[str, Update], dict[str, Tensor]]:
    init = residual_init(files.config) if kind == "lora" else None
    if init is not None:
        layers, rest = folded_layers(files)
        config = files.config
        return {
            name: _ResidualUpdate(lora, config, init, name, name in transposed) for name, lora in layers.items()
        }, rest
    if kind in ("lora", "kasa"):
        layers, rest = stock_layers(files if kind == "lora" else to_lora(files))
        return {name: _LoraUpdate(lora.B, lora.A) for name, lora in layers.items()}, rest
    native = as_native(files, kind, None)
    factors, rest = trained_factors(native.tensors)
    convention = native.config["convention"]
    return {
        name: _TruncatingUpdate(f, scaling_of(native.config, name), convention) for name, f in factors.items()
    }, rest


def resized_vocabulary(plan: MergePlan, model: nn.Module) -> int | None:
    """The number of tokens of a resized vocabulary; None if the adapter keeps that of the base.

    Raises:
        AdapterError: the adapter resizes some of the embeddings only, or names a token that the base does not have.
    """
    embeddings = embedding_parameters(model)
    for name, (ids, _) in plan.rows.items():
        parameter = model.get_parameter(name)
        if ids and max(ids) >= parameter.shape[0]:
            raise AdapterError(
                f"the adapter trains token {max(ids)} of {name}, which has {counted(parameter.shape[0], 'row')} "
                "in this base: the "
                "vocabulary was resized, and the adapter does not hold the other new rows. Save it again with "
                "save_pretrained(folder, save_embedding_layers=True)"
            )
    sizes = {name: plan.replaced[name].shape[0] for name in embeddings if name in plan.replaced}
    resized = {name: size for name, size in sizes.items() if size != embeddings[name].shape[0]}
    if not resized:
        return None
    size = next(iter(resized.values()))
    ties = ties_of(model)
    for name, parameter in embeddings.items():
        follows = not {name, *ties.get(name, ())}.isdisjoint(resized)
        if sizes.get(name, size if follows else parameter.shape[0]) != size:
            raise AdapterError(
                f"the adapter resizes the vocabulary to {counted(size, 'token')}, but holds no {name} of that "
                "size; save it again "
                "with save_pretrained(folder, save_embedding_layers=True)"
            )
    return size


def _require_shape(name: str, expected: tuple[int, int], module: Any, *, transposed: bool) -> None:
    shape = tuple(module.weight.shape[:2] if pointwise_dimensions(module) else module.weight.shape)
    stored = expected[::-1] if transposed else expected
    if shape != stored:
        raise ModelError(
            f"{name} has shape {list(shape)} in this base, the adapter needs {list(stored)}; name the right "
            "base with --base"
        )


def _rounding_error(rounded: Tensor, W: Tensor, change: Tensor) -> float:
    """||rounded - (W + change)||_F, with the sum in float64."""
    return float((rounded.double() - (W.double() + change.double())).norm())


def share_ties(base: ModelCheckpoint, plan: MergePlan) -> bool:
    """Give tied weights that stay equal one change, under the name that the files store; whether others are untied."""
    untied = False
    changed = sorted({f"{layer}.weight" for layer in plan.updates} | set(plan.replaced) | set(plan.rows))
    for group in {frozenset((name, *base.ties[name])) for name in changed if base.ties.get(name)}:
        members = sorted(group, key=lambda name: (name not in base.tensors, name))
        change = _common_change(members, base.model, plan)
        untied = untied or change is None
        if change is None:
            continue
        for index, name in enumerate(members):
            plan.replaced.pop(name, None)
            plan.rows.pop(name, None)
            if index == 0 or name in base.tensors:
                if isinstance(change, Rows):
                    plan.rows[name] = change
                else:
                    plan.replaced[name] = change
            else:
                plan.followers.add(name)
    return untied


def _common_change(members: list[str], model: nn.Module, plan: MergePlan) -> Tensor | Rows | None:
    """The change that all names of a tied weight share; None if they differ afterwards."""
    if any(name.removesuffix(".weight") in plan.updates for name in members):
        return None
    replaced = [plan.replaced[name] for name in members if name in plan.replaced]
    rows = {name: plan.rows[name] for name in members if name in plan.rows}
    if replaced and not rows and all(torch.equal(tensor, replaced[0]) for tensor in replaced[1:]):
        resized = replaced[0].shape != model.get_parameter(members[0]).shape
        return replaced[0] if resized or len(replaced) == len(members) else None
    # PEFT ties the trained tokens of the input embedding to the output, but not the other way round.
    if not replaced and len(rows) == 1 and next(iter(rows)) in _input_embedding(model):
        return next(iter(rows.values()))
    return None


def _input_embedding(model: nn.Module) -> list[str]:
    embedding: Any = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    return [f"{name}.weight" for name, module in model.named_modules() if module is embedding]

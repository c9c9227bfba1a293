"""Merge an adapter into its base: a plain transformers checkpoint, written shard by shard from the base's files."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kasatune.adapter_tools.merged_files import write_other_files
from kasatune.adapter_tools.resolve import Source, find_source, local_base, open_base, read_config
from kasatune.adapters.adapter_files import PREFIX, AdapterFiles, listed, read_tensors, write_json
from kasatune.adapters.attach import require_configured_layers, require_saved_modules
from kasatune.adapters.certificate import Certificate, library_versions, write_certificate
from kasatune.adapters.format_conversion import WITHOUT_TAILS, as_native
from kasatune.adapters.load import read_checked
from kasatune.adapters.lora_export import StackedLora, folded_layers, stock_layers, to_lora
from kasatune.adapters.lora_settings import check_settings, residual_init
from kasatune.adapters.native_format import require_untied, scaling_of, trained_factors
from kasatune.adapters.recognize_format import TITLES
from kasatune.adapters.residual_lora import StoredWeight, layer_residual
from kasatune.errors import AdapterError, ModelError
from kasatune.io.atomic import new_directory
from kasatune.kasa.functional import Factors, drop_count, update
from kasatune.linalg import tail_svd
from kasatune.weights.base_weight import pointwise_dimensions
from kasatune.weights.checkpoint_files import INDEX, SINGLE
from kasatune.weights.fingerprint import sketch_distance, sketch_tolerance
from kasatune.weights.safetensors_reader import FLOAT_DTYPES, ModelCheckpoint, StoredTensor
from kasatune.weights.safetensors_writer import PlannedTensor, write_safetensors

_ROWS_AT_ONCE = 64


class Merged(NamedTuple):
    """The result of a merge.

    Attributes:
        out: the new checkpoint.
        layers: number of weights that were updated.
        replaced: names of parameters that the adapter replaces entirely, such as those of a head.
        rounding: the largest ||rounded(W') - W'||_F / ||W' - W||_F: what the base's dtype loses of an update.
        worst: the layer with that rounding.
    """

    out: Path
    layers: int
    replaced: list[str]
    rounding: float
    worst: str


def merge(directory: Path, out: Path, base: str | None = None) -> Merged:
    """W <- W - tail + s B diag(sigma) A in every adapted layer, rounded once to the dtype of the base's files.

    The base is read from its safetensors files, and the result is written to files of the same names with one tensor
    in memory at a time. Heads and biases that the adapter trained replace those of the base; a weight that is tied to
    one that changes is written separately. Configuration, tokenizer, generation configuration and chat template are
    copied. The result loads with plain transformers.

    Args:
        directory: a run, or an adapter in any format that `load_adapter` reads.
        out: a directory that does not exist or is empty; it is written completely or not at all.
        base: name or folder of the base; by default the one that the recipe or the adapter names.

    Raises:
        InputError: there is no adapter, or the name of the base is unknown.
        ModelError: the base cannot be found, is quantized, or lacks a weight that the adapter is for.
        AdapterError: the adapter is damaged, was made for another base, or has a setting that no merge can express.
        OutputError: `out` is not empty.
    """
    source = find_source(directory, base)
    header, kind, layers = read_checked(source.adapter)
    check_settings(header.config, kind)
    with new_directory(out) as unfinished:
        checkpoint = open_base(source)
        if read_config(local_base(source)).get("quantization_config"):
            raise ModelError(
                f"{checkpoint.folder} is quantized, and quantizing a merged weight again would lose most of the "
                "update: name the full-precision base with --base, or serve the adapter unmerged "
                "(kasatune export --to lora)"
            )
        plan = plan_merge(read_tensors(header), kind, list(layers), checkpoint.model)
        require_configured_layers(header, layers, checkpoint.model)
        require_saved_modules(header, layers, checkpoint.model)
        digests, untied = _write_weights(unfinished, checkpoint, plan)
        write_other_files(unfinished, source, checkpoint, untied=untied)
        worst = max(plan.rounding, key=lambda name: plan.rounding[name])
        write_certificate(unfinished, _certificate(source, kind, plan, worst, digests))
    return Merged(out, len(plan.updates), sorted(plan.replaced), plan.rounding[worst], worst)


def _certificate(source: Source, kind: str, plan: MergePlan, worst: str, digests: dict[str, str]) -> Certificate:
    return {
        "from": kind,
        "to": "checkpoint",
        "base": {"name": source.base_name, "fingerprint": source.config.get("base_fingerprint")},
        "rounding": {"largest_relative_difference": plan.rounding[worst], "layer": worst},
        "files": digests,
        "versions": library_versions(),
    }


# The plan: what happens to each tensor, by the model's name of it


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
        fingerprint: sketches of the base that the adapter was made for, by layer name; empty if unknown.
        rounding: ||rounded(W') - W'||_F / ||W' - W||_F by layer name, filled in while writing.
    """

    updates: dict[str, Update]
    transposed: set[str]
    replaced: dict[str, Tensor]
    fingerprint: dict[str, Any]
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


def plan_merge(files: AdapterFiles, kind: str, layers: list[str], model: nn.Module) -> MergePlan:
    """The plan for an adapter in format `kind`, on a model of which only names and shapes are known.

    Raises:
        AdapterError: the model lacks a layer or a parameter that the adapter names.
        ModelError: a layer has another shape in the model.
    """
    modules = dict(model.named_modules())
    unknown = [name for name in layers if not hasattr(modules.get(name), "weight")]
    if unknown:
        raise AdapterError(f"{type(model).__name__} has no layer {listed(unknown)}: the adapter is of another model")
    transposed = {name for name in layers if isinstance(modules[name], Conv1D)}
    updates, rest = _updates(files, kind, transposed)
    replaced = {key.removeprefix(PREFIX).replace(".base_layer.", "."): tensor for key, tensor in rest.items()}
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    unknown = [name for name in replaced if name not in known]
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
    return MergePlan(updates, transposed, replaced, fingerprint if isinstance(fingerprint, dict) else {})


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


# The files


def _write_weights(out: Path, base: ModelCheckpoint, plan: MergePlan) -> tuple[dict[str, str], bool]:
    """Write the merged weights into files of the same names, and the index if the base has one.

    Returns:
        SHA-256 by file name, and whether weights that were tied no longer are.

    Raises:
        ModelError: the files hold no weight of a layer that the adapter is for.
    """
    additional, untied = _additional_tensors(base, plan)
    digests: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    total = 0
    last = list(base.shards)[-1]
    for path, shard in base.shards.items():
        planned = [_planned(stored, base.names[stored.key], plan, rename=bool(additional)) for stored in shard]
        if path == last:
            planned += additional
        digests[path.name] = write_safetensors(out / path.name, planned)
        weight_map |= {tensor.key: path.name for tensor in planned}
        total += sum(tensor.size for tensor in planned)
    if list(base.shards) != [base.folder / SINGLE]:
        write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return digests, untied


def _planned(stored: StoredTensor, name: str, plan: MergePlan, *, rename: bool) -> PlannedTensor:
    key = name if rename else stored.key
    if name in plan.replaced:
        return _replacement(key, plan.replaced[name], stored.dtype)
    if name.endswith(".weight") and name.removesuffix(".weight") in plan.updates:
        return _merged(key, name, plan, stored)
    return PlannedTensor(key, stored.dtype, stored.shape, source=stored)


def _replacement(key: str, tensor: Tensor, dtype: str) -> PlannedTensor:
    return PlannedTensor(key, dtype, tuple(tensor.shape), compute=lambda: tensor.to(FLOAT_DTYPES[dtype]))


def _merged(key: str, name: str, plan: MergePlan, stored: StoredTensor) -> PlannedTensor:
    layer = name.removesuffix(".weight")
    return PlannedTensor(key, stored.dtype, stored.shape, compute=lambda: plan.merged(layer, stored.read()))


def _additional_tensors(base: ModelCheckpoint, plan: MergePlan) -> tuple[list[PlannedTensor], bool]:
    """Tensors that the base's files lack: new heads, and separate copies of weights that were tied to a changed one."""
    changed = {f"{layer}.weight" for layer in plan.updates} | set(plan.replaced)
    additional: list[PlannedTensor] = []
    untied = False
    for name in sorted(changed):
        partners = [partner for partner in base.ties.get(name, ()) if partner not in changed]
        untied = untied or bool(partners)
        if name in base.tensors:
            stored = base.tensors[name]
            missing = [partner for partner in partners if partner not in base.tensors]
            additional += [PlannedTensor(partner, stored.dtype, stored.shape, source=stored) for partner in missing]
        elif name in plan.replaced:
            additional.append(_replacement(name, plan.replaced[name], _usual_dtype(base)))
        else:
            stored = base.weight(name.removesuffix(".weight"))
            if stored is None:
                raise ModelError(
                    f"the base's files hold no {listed([name])}: they store it in another form. Load the model with "
                    "the adapter and use merge_and_unload() of PEFT"
                )
            additional.append(_merged(name, name, plan, stored))
    return additional, untied


def _usual_dtype(base: ModelCheckpoint) -> str:
    """The dtype of most bytes of the base."""
    sizes: dict[str, int] = defaultdict(int)
    for stored in base.tensors.values():
        if stored.is_float:
            sizes[stored.dtype] += stored.size
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else "F32"

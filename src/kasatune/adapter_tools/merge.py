"""Merge an adapter into its base: a plain transformers checkpoint, written shard by shard from the base's files."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from kasatune.adapter_tools.merge_plan import MergePlan, plan_merge, resized_vocabulary, share_ties
from kasatune.adapter_tools.merged_files import write_other_files
from kasatune.adapter_tools.resolve import Source, find_source, local_base, open_base, read_config
from kasatune.adapters.adapter_files import listed, read_repeated, read_tensors, write_json
from kasatune.adapters.attach import require_configured_layers, require_saved_modules
from kasatune.adapters.certificate import Certificate, library_versions, write_certificate
from kasatune.adapters.embedding_tensors import Rows
from kasatune.adapters.load import read_checked
from kasatune.adapters.lora_settings import check_settings
from kasatune.errors import ModelError
from kasatune.io.atomic import new_directory
from kasatune.weights.checkpoint_files import INDEX, SINGLE
from kasatune.weights.safetensors_reader import FLOAT_DTYPES, ModelCheckpoint, StoredTensor
from kasatune.weights.safetensors_writer import PlannedTensor, write_safetensors


class Merged(NamedTuple):
    """The result of a merge.

    Attributes:
        out: the new checkpoint.
        layers: number of weights that were updated.
        replaced: names of parameters that the adapter replaces, entirely or in rows, such as those of a head.
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
        plan = plan_merge(read_tensors(header), kind, list(layers), checkpoint.model, read_repeated(header))
        require_configured_layers(header, layers, checkpoint.model)
        require_saved_modules(header, layers, checkpoint.model)
        vocabulary = resized_vocabulary(plan, checkpoint.model)
        digests, untied = _write_weights(unfinished, checkpoint, plan)
        write_other_files(unfinished, source, checkpoint, untied=untied, vocabulary=vocabulary)
        worst = max(plan.rounding, key=lambda name: plan.rounding[name])
        write_certificate(unfinished, _certificate(source, kind, plan, worst, digests))
    return Merged(out, len(plan.updates), sorted({*plan.replaced, *plan.rows}), plan.rounding[worst], worst)


def _certificate(source: Source, kind: str, plan: MergePlan, worst: str, digests: dict[str, str]) -> Certificate:
    return {
        "from": kind,
        "to": "checkpoint",
        "base": {"name": source.base_name, "fingerprint": source.config.get("base_fingerprint")},
        "rounding": {"largest_relative_difference": plan.rounding[worst], "layer": worst},
        "files": digests,
        "versions": library_versions(),
    }


def _write_weights(out: Path, base: ModelCheckpoint, plan: MergePlan) -> tuple[dict[str, str], bool]:
    """Write the merged weights into files of the same names, and the index if the base has one.

    Returns:
        SHA-256 by file name, and whether weights that were tied no longer are.

    Raises:
        ModelError: the files hold no weight of a layer that the adapter is for.
    """
    untied = share_ties(base, plan)
    additional = _additional_tensors(base, plan)
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
    if name in plan.rows:
        return _with_rows(key, plan.rows[name], stored)
    if name.endswith(".weight") and name.removesuffix(".weight") in plan.updates:
        return _merged(key, name, plan, stored)
    return PlannedTensor(key, stored.dtype, stored.shape, source=stored)


def _replacement(key: str, tensor: Tensor, dtype: str) -> PlannedTensor:
    return PlannedTensor(key, dtype, tuple(tensor.shape), compute=lambda: tensor.to(FLOAT_DTYPES[dtype]))


def _with_rows(key: str, rows: Rows, stored: StoredTensor) -> PlannedTensor:
    def compute() -> Tensor:
        W = stored.read().clone()
        W[rows.ids] = rows.values.to(W.dtype)
        return W

    return PlannedTensor(key, stored.dtype, stored.shape, compute=compute)


def _merged(key: str, name: str, plan: MergePlan, stored: StoredTensor) -> PlannedTensor:
    layer = name.removesuffix(".weight")
    return PlannedTensor(key, stored.dtype, stored.shape, compute=lambda: plan.merged(layer, stored.read()))


def _additional_tensors(base: ModelCheckpoint, plan: MergePlan) -> list[PlannedTensor]:
    """Tensors that the base's files lack: new heads, and separate copies of weights that were tied to a changed one."""
    changed = {f"{layer}.weight" for layer in plan.updates} | set(plan.replaced) | set(plan.rows)
    additional: list[PlannedTensor] = []
    for name in sorted(changed):
        partners = [tie for tie in base.ties.get(name, ()) if tie not in changed and tie not in plan.followers]
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
            if name in plan.rows:
                additional.append(_with_rows(name, plan.rows[name], stored))
            else:
                additional.append(_merged(name, name, plan, stored))
    return additional


def _usual_dtype(base: ModelCheckpoint) -> str:
    """The dtype of most bytes of the base."""
    sizes: dict[str, int] = defaultdict(int)
    for stored in base.tensors.values():
        if stored.is_float:
            sizes[stored.dtype] += stored.size
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else "F32"

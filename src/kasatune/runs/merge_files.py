"""The files of a merged checkpoint: weights, index and configuration, and what is kept of the base beside them."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kasatune.errors import ModelError
from kasatune.runs.merge_plan import Plan
from kasatune.runs.quiet import quiet
from kasatune.runs.shards import DTYPES, INDEX, Entry, Planned, dtype_name, write_shard
from kasatune.runs.sources import Source, load_config, model_class, read_config
from kasatune.tuner.storage import listed, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Beside the weights a checkpoint is its configuration, its tokenizer and its chat template: small text files.
_KEPT = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")
_NOT_KEPT = ("config.json", INDEX, "adapter_config.json", "certificate.json", "trainer_state.json")
_LICENCES = ("LICENSE", "NOTICE", "USE_POLICY")
# Names that checkpoints of old had for the parameters of a layer norm.
_OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}


def skeleton(source: Source, folder: Path) -> PreTrainedModel:
    """The model that the adapter is for, without weights: names, shapes and what is tied.

    Raises:
        ModelError: transformers cannot make one of the base's configuration.
    """
    try:
        with quiet(), torch.device("meta"):
            config = load_config(source, str(folder))
            kind = model_class(source)
            return kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    except Exception as fault:  # transformers raises many types for a configuration that it cannot take
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise ModelError(f"{folder}: no model can be made of its configuration: {reason}") from fault


def write_weights(
    out: Path, shards: Sequence[Sequence[Entry]], plan: Plan, model: PreTrainedModel
) -> tuple[dict[str, str], bool]:
    """Write the merged weights into files of the same names, tensor by tensor, and the index where there is one.

    Returns:
        SHA-256 by file name, and whether weights that were tied are no longer.

    Raises:
        ModelError: a weight that the adapter is for is in none of the files.
    """
    stored = [entry for shard in shards for entry in shard]
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    names = {entry.key: _model_name(entry.key, known, f"{model.base_model_prefix}.") for entry in stored}
    found = {names[entry.key]: entry for entry in stored}
    extra, untied = _extra(found, plan, model)
    digests: dict[str, str] = {}
    placed: dict[str, str] = {}
    total = 0
    for shard in shards:
        path = shard[0].path
        planned = [_planned(entry, names[entry.key], plan, rename=bool(extra)) for entry in shard]
        if shard is shards[-1]:
            planned += extra
        digests[path.name] = write_shard(out / path.name, planned)
        placed |= {tensor.key: path.name for tensor in planned}
        total += sum(tensor.size for tensor in planned)
    if len(shards) > 1 or (stored[0].path.parent / INDEX).is_file():
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        write_json(out / INDEX, index)
    return digests, untied


def write_config(out: Path, folder: Path, model: PreTrainedModel, *, untied: bool) -> None:
    """Write config.json: the base's, with the model's class, its labels, and whether embeddings are tied."""
    config = read_config(folder)
    config["architectures"] = [type(model).__name__]
    if untied:
        config["tie_word_embeddings"] = False
    if "Classification" in type(model).__name__:
        made = model.config
        config["id2label"] = {str(index): name for index, name in made.id2label.items()}
        config["label2id"] = dict(made.label2id)
        if made.problem_type is not None:
            config["problem_type"] = made.problem_type
        if config.get("pad_token_id") is None and config.get("eos_token_id") is not None:
            # Decoders that classify read the last token that is no padding.
            eos = config["eos_token_id"]
            config["pad_token_id"] = eos[0] if isinstance(eos, list) else eos
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def copy_beside(folder: Path, out: Path) -> None:
    """Copy tokenizer, generation configuration, chat template and licence."""
    for path in sorted(folder.iterdir()):
        kept = path.suffix in _KEPT or path.name.startswith(_LICENCES)
        if path.is_file() and kept and path.name not in _NOT_KEPT:
            shutil.copyfile(path, out / path.name)


def _model_name(key: str, known: set[str], prefix: str) -> str:
    """The model's name for a tensor of a checkpoint, which may lack the name of the body, or be of an old form."""
    modern = key
    for old, new in _OLD_NAMES.items():
        modern = modern.removesuffix(old) + new if modern.endswith(old) else modern
    for candidate in (key, prefix + key, key.removeprefix(prefix), modern, prefix + modern):
        if candidate in known:
            return candidate
    return key


def _planned(entry: Entry, name: str, plan: Plan, *, rename: bool) -> Planned:
    key = name if rename else entry.key
    if name in plan.whole:
        return _whole(key, plan.whole[name], entry.dtype)
    layer = name.removesuffix(".weight")
    if name.endswith(".weight") and layer in plan.changes:
        return Planned(key, entry.dtype, entry.shape, make=lambda: plan.merged(layer, entry.read()))
    return Planned(key, entry.dtype, entry.shape, entry=entry)


def _whole(key: str, tensor: Tensor, dtype: str) -> Planned:
    return Planned(key, dtype, tuple(tensor.shape), make=lambda: tensor.to(DTYPES[dtype]))


def _extra(found: dict[str, Entry], plan: Plan, model: PreTrainedModel) -> tuple[list[Planned], bool]:
    """Tensors that the base's files lack: new heads, and weights of their own where a tie was cut."""
    changed = {f"{layer}.weight" for layer in plan.changes} | set(plan.whole)
    ties = _ties(model)
    extra: list[Planned] = []
    untied = False
    usual = _usual_dtype(found)
    for name in sorted(changed):
        partners = [partner for partner in ties.get(name, ()) if partner not in changed]
        untied = untied or bool(partners)
        for partner in partners:
            if partner not in found and name in found:
                entry = found[name]
                extra.append(Planned(partner, entry.dtype, entry.shape, entry=entry))
        if name in found:
            continue
        if name in plan.whole:
            extra.append(_whole(name, plan.whole[name], usual))
            continue
        source = next((found[partner] for partner in ties.get(name, ()) if partner in found), None)
        if source is None:
            raise ModelError(
                f"the base's files hold no {listed([name])}: they store it in another form. Load the model with the "
                "adapter and use merge_and_unload() of PEFT"
            )
        extra.append(_merged_tied(name, source, plan))
    return extra, untied


def _merged_tied(name: str, source: Entry, plan: Plan) -> Planned:
    layer = name.removesuffix(".weight")
    return Planned(name, source.dtype, source.shape, make=lambda: plan.merged(layer, source.read()))


def _ties(model: PreTrainedModel) -> dict[str, list[str]]:
    """The other names of each parameter that has several."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups[id(parameter)].append(name)
    return {name: [other for other in names if other != name] for names in groups.values() for name in names}


def _usual_dtype(found: dict[str, Entry]) -> str:
    """The dtype of most of the base's bytes."""
    sizes: dict[str, int] = defaultdict(int)
    for entry in found.values():
        if entry.dtype in DTYPES:
            sizes[entry.dtype] += entry.size
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else dtype_name(torch.float32)

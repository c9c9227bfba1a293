"""The files of a merged checkpoint: weights, index and configuration, and what is kept of the base beside them."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kasatune.adapter_tools.base_files import BaseFiles
from kasatune.adapter_tools.merge_plan import Plan
from kasatune.adapter_tools.resolve import read_config
from kasatune.adapters.storage import listed, write_json
from kasatune.errors import ModelError
from kasatune.weights.shards import DTYPES, INDEX, Entry, Planned, dtype_name, write_shard

# Beside the weights a checkpoint is its configuration, its tokenizer and its chat template: small text files.
_KEPT = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")
_NOT_KEPT = ("config.json", INDEX, "adapter_config.json", "certificate.json", "trainer_state.json")
_LICENCES = ("LICENSE", "NOTICE", "USE_POLICY")


def write_weights(out: Path, base: BaseFiles, plan: Plan) -> tuple[dict[str, str], bool]:
    """Write the merged weights into files of the same names, tensor by tensor, and the index where there is one.

    Returns:
        SHA-256 by file name, and whether weights that were tied are no longer.

    Raises:
        ModelError: a weight that the adapter is for is in none of the files.
    """
    extra, untied = _extra(base, plan)
    digests: dict[str, str] = {}
    placed: dict[str, str] = {}
    total = 0
    for shard in base.shards:
        path = shard[0].path
        planned = [_planned(entry, base.names[entry.key], plan, rename=bool(extra)) for entry in shard]
        if shard is base.shards[-1]:
            planned += extra
        digests[path.name] = write_shard(out / path.name, planned)
        placed |= {tensor.key: path.name for tensor in planned}
        total += sum(tensor.size for tensor in planned)
    if (base.folder / INDEX).is_file():
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        write_json(out / INDEX, index)
    return digests, untied


def write_config(out: Path, base: BaseFiles, *, untied: bool) -> None:
    """Write config.json: the base's, with the model's class, its labels, and whether embeddings are tied."""
    config, model = read_config(base.folder), base.model
    config["architectures"] = [type(model).__name__]
    if untied:
        config["tie_word_embeddings"] = False
    if "Classification" in type(model).__name__:
        made: Any = model.config
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


def _planned(entry: Entry, name: str, plan: Plan, *, rename: bool) -> Planned:
    key = name if rename else entry.key
    if name in plan.whole:
        return _whole(key, plan.whole[name], entry.dtype)
    layer = name.removesuffix(".weight")
    if name.endswith(".weight") and layer in plan.changes:
        return replace(_merged(name, plan, entry), key=key)
    return Planned(key, entry.dtype, entry.shape, entry=entry)


def _whole(key: str, tensor: Tensor, dtype: str) -> Planned:
    return Planned(key, dtype, tuple(tensor.shape), make=lambda: tensor.to(DTYPES[dtype]))


def _extra(base: BaseFiles, plan: Plan) -> tuple[list[Planned], bool]:
    """Tensors that the base's files lack: new heads, and weights of their own where a tie was cut."""
    changed = {f"{layer}.weight" for layer in plan.changes} | set(plan.whole)
    extra: list[Planned] = []
    untied = False
    for name in sorted(changed):
        partners = [partner for partner in base.ties.get(name, ()) if partner not in changed]
        untied = untied or bool(partners)
        if name in base.found:
            entry = base.found[name]
            missing = [partner for partner in partners if partner not in base.found]
            extra += [Planned(partner, entry.dtype, entry.shape, entry=entry) for partner in missing]
        elif name in plan.whole:
            extra.append(_whole(name, plan.whole[name], _usual_dtype(base)))
        else:
            extra.append(_merged(name, plan, base.weight(name.removesuffix(".weight"))))
    return extra, untied


def _merged(name: str, plan: Plan, source: Entry | None) -> Planned:
    if source is None:
        raise ModelError(
            f"the base's files hold no {listed([name])}: they store it in another form. Load the model with the "
            "adapter and use merge_and_unload() of PEFT"
        )
    layer = name.removesuffix(".weight")
    return Planned(name, source.dtype, source.shape, make=lambda: plan.merged(layer, source.read()))


def _usual_dtype(base: BaseFiles) -> str:
    """The dtype of most of the base's bytes."""
    sizes: dict[str, int] = defaultdict(int)
    for entry in base.found.values():
        if entry.dtype in DTYPES:
            sizes[entry.dtype] += entry.size
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else dtype_name(torch.float32)

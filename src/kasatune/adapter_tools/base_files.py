"""The files of a base model, under the names that the model has for the tensors in them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers.pytorch_utils import Conv1D

from kasatune.adapter_tools.resolve import Source, checkpoint_folder, load_config, model_class
from kasatune.errors import ModelError
from kasatune.io.library_noise import quiet
from kasatune.weights.shards import Entry, entries, shard_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Names that checkpoints of old had for the parameters of a layer norm.
_OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}


@dataclass(frozen=True)
class BaseFiles:
    """A base model as it lies on disk; of its weights only names and shapes are in memory.

    Attributes:
        folder: where its files are.
        model: the model that the adapter is for, on the meta device.
        shards: the tensors of each safetensors file.
        names: the model's name for each tensor, by its key in the file; the key itself where the model has none.
        found: the tensors by the model's name.
        ties: the other names of each parameter that has several.
    """

    folder: Path
    model: PreTrainedModel
    shards: list[list[Entry]]
    names: dict[str, str]
    found: dict[str, Entry]
    ties: dict[str, list[str]]

    def weight(self, layer: str) -> Entry | None:
        """Where the weight of a layer is stored, under its own name or that of a weight tied to it."""
        name = f"{layer}.weight"
        return next((self.found[known] for known in (name, *self.ties.get(name, ())) if known in self.found), None)

    def is_transposed(self, layer: str) -> bool:
        """Whether a layer's weight is stored as (in, out)."""
        return isinstance(self.model.get_submodule(layer), Conv1D)


def open_base(source: Source) -> BaseFiles:
    """The files of the base that a source belongs to; a model on the hub is fetched.

    Raises:
        InputError: nobody names the base.
        ModelError: it cannot be had, holds no safetensors, or transformers cannot make its model.
    """
    folder = checkpoint_folder(source)
    return files_of(folder, _skeleton(source, folder))


def files_of(folder: Path, model: PreTrainedModel) -> BaseFiles:
    """The safetensors files in a folder, as a model without weights names the tensors in them.

    Raises:
        ModelError: there are none, or they are damaged.
    """
    shards = [entries(path) for path in shard_files(folder)]
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    stored = [entry for shard in shards for entry in shard]
    if not stored:
        raise ModelError(f"{folder} holds no tensors; copy the model again")
    names = {entry.key: _model_name(entry.key, known, f"{model.base_model_prefix}.") for entry in stored}
    return BaseFiles(folder, model, shards, names, {names[entry.key]: entry for entry in stored}, _ties(model))


def _skeleton(source: Source, folder: Path) -> PreTrainedModel:
    try:
        with quiet(), torch.device("meta"):
            config = load_config(source, str(folder))
            kind = model_class(source)
            if hasattr(kind, "from_config"):
                return kind.from_config(config, trust_remote_code=source.trust_remote_code)
            return kind(config)
    except Exception as fault:  # transformers raises many types for a configuration that it cannot take
        reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise ModelError(f"{folder}: no model can be made of its configuration: {reason}") from fault


def _model_name(key: str, known: set[str], prefix: str) -> str:
    """The model's name for a tensor of a checkpoint, which may lack the name of the body, or be of an old form."""
    modern = key
    for old, new in _OLD_NAMES.items():
        modern = modern.removesuffix(old) + new if modern.endswith(old) else modern
    for candidate in (key, prefix + key, key.removeprefix(prefix), modern, prefix + modern):
        if candidate in known:
            return candidate
    return key


def _ties(model: PreTrainedModel) -> dict[str, list[str]]:
    groups: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups[id(parameter)].append(name)
    return {name: [other for other in names if other != name] for names in groups.values() for name in names}

"""The full-precision weights of a base model, read from its safetensors files one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from kasatune.errors import ModelError
from kasatune.weights.base_weight import FLOAT_DTYPES

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Checkpoint:
    """The tensors of a checkpoint by name, without any of them in memory.

    Args:
        folder: where it lies.
        files: the file of each tensor.
        root: the path of the transformers model inside the model that is adapted, "" for itself.
    """

    def __init__(self, folder: Path, files: dict[str, Path], root: str) -> None:
        self.folder = folder
        self._files = files
        self._root = root

    def candidates(self, layer: str, shape: tuple[int, int]) -> Iterator[Tensor]:
        """Float tensors (out, in) that may be the weight of a layer, likeliest first.

        A tensor stored (in, out), as transformers' Conv1D stores it, comes transposed; a square one both ways.

        Args:
            layer: its name in the model.
            shape: (out, in).

        Raises:
            ModelError: a file that cannot be read.
        """
        for key in self._keys(layer):
            tensor = self._read(key)
            if tensor.dtype not in FLOAT_DTYPES:
                continue
            if tuple(tensor.shape) == shape:
                yield tensor
            if tuple(tensor.shape[::-1]) == shape:
                yield tensor.T

    def _keys(self, layer: str) -> list[str]:
        """The tensor of a layer's name, else those that share the longest end of theirs with it.

        Files name the trunk of a model otherwise, or not at all, where they were written by another class.
        """
        plain = layer.removeprefix(f"{self._root}.") if self._root else layer
        if f"{plain}.weight" in self._files:
            return [f"{plain}.weight"]
        parts = f"{plain}.weight".split(".")
        for start in range(len(parts) - 1):
            end = ".".join(parts[start:])
            found = [key for key in self._files if key.endswith(f".{end}") or key == end]
            if found:
                # An end without the number of the block fits every block.
                return found if any(part.isdigit() for part in parts[start:]) or len(found) == 1 else []
        return []

    def _read(self, key: str) -> Tensor:
        path = self._files[key]
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(key)
        except (SafetensorError, OSError) as fault:
            raise ModelError(
                f"{path}: the tensor {key} cannot be read: {fault}. It was cut short or damaged."
            ) from fault


def find(model: nn.Module, given: str | None) -> tuple[Checkpoint | None, str]:
    """The checkpoint that a model was loaded from.

    Args:
        model: the model that is adapted.
        given: a folder or a hub name; None for the model's own, `name_or_path`. Nothing is downloaded.

    Returns:
        The checkpoint, None where there is none, and what was looked for, in words.
    """
    root, owner = next(((n, m) for n, m in model.named_modules() if isinstance(m, PreTrainedModel)), ("", None))
    config = getattr(owner or model, "config", None)
    names = [given] if given else [getattr(owner, "name_or_path", None), getattr(config, "_name_or_path", None)]
    names = [name for name in dict.fromkeys(names) if isinstance(name, str) and name]
    if not names:
        return None, "the model has no name_or_path to look for its checkpoint in"
    for name in names:
        revision = None if given else getattr(config, "_commit_hash", None)
        files = _listed(name, revision)
        if files:
            return Checkpoint(next(iter(files.values())).parent, files, root), f"{name!r}"
    shown = " and ".join(repr(name) for name in names)
    return None, f"no {SINGLE} or {INDEX} in {shown} (a folder, or the hub's cache on this machine; never pickles)"


def _listed(name: str, revision: str | None) -> dict[str, Path]:
    """The file of every tensor of a checkpoint; empty where there is none."""
    index = _located(name, INDEX, revision)
    if index is not None:
        return _sharded(index)
    single = _located(name, SINGLE, revision)
    if single is None:
        return {}
    try:
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), single)
    except (SafetensorError, OSError) as fault:
        raise ModelError(f"{single} cannot be read: {fault}. It was cut short or damaged.") from fault


def _located(name: str, filename: str, revision: str | None) -> Path | None:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder / filename if (folder / filename).is_file() else None
    quiet: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_gated_repo": False}
    try:
        found = cached_file(name, filename, revision=revision, local_files_only=True, **quiet)
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found)


def _sharded(index: Path) -> dict[str, Path]:
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(key): index.parent / str(shard) for key, shard in shards.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as fault:
        raise ModelError(f"{index} is no index of safetensors files: {fault}") from fault
    strange = [path for path in files.values() if path.parent != index.parent]
    if strange:
        raise ModelError(f"{index} names {strange[0]}, which is not a file beside it")
    return files

"""Read the safetensors checkpoint of a base model: its files, and its tensors under the names that the model uses."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kasatune.errors import ModelError
from kasatune.weights.checkpoint_files import INDEX, SINGLE, has_weight_files, weight_files

# The dtypes that weights may be computed with, and all others that can be copied, by their names in safetensors.
FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
STORED_DTYPES = FLOAT_DTYPES | {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "BOOL": torch.bool,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}

# Older checkpoints use these endings for the parameters of a layer norm.
_OLD_ENDINGS = {".gamma": ".weight", ".beta": ".bias"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, not yet read.

    Attributes:
        path: the file.
        key: the tensor's name in the file.
        dtype: as safetensors names it, for example "BF16".
        shape: of the tensor.
    """

    path: Path
    key: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether the dtype is one of `FLOAT_DTYPES`."""
        return self.dtype in FLOAT_DTYPES

    @property
    def size(self) -> int:
        """Number of bytes.

        Raises:
            ModelError: the dtype is not one of `STORED_DTYPES`.
        """
        dtype = STORED_DTYPES.get(self.dtype)
        if dtype is None:
            raise ModelError(
                f"{self.path.name}: {self.key} is stored as {self.dtype}, which cannot be copied; give a base in "
                "float32, float16 or bfloat16 with --base"
            )
        return math.prod(self.shape) * dtype.itemsize

    def read(self) -> Tensor:
        """The tensor, mapped from the file.

        Raises:
            ModelError: the dtype is not a full-precision one, or the file cannot be read.
        """
        if not self.is_float:
            raise ModelError(
                f"{self.path.name}: {self.key} is stored as {self.dtype}; give a base in float32, float16 or bfloat16 "
                "with --base"
            )
        return self._mapped()

    def content(self) -> memoryview:
        """The bytes of the tensor as they are in the file, mapped.

        Raises:
            ModelError: the file cannot be read.
        """
        return self._mapped().reshape(-1).view(torch.uint8).numpy().data

    def _mapped(self) -> Tensor:
        try:
            with safe_open(self.path, framework="pt") as file:
                return file.get_tensor(self.key)
        except (SafetensorError, OSError) as fault:
            raise ModelError(
                f"{self.path}: the tensor {self.key} cannot be read: {fault}. The file is incomplete or damaged; "
                "copy the model again"
            ) from fault


@dataclass(frozen=True)
class LoadedTensor(StoredTensor):
    """A tensor in memory in place of a stored one, such as a dequantized weight of a GGUF file."""

    value: Tensor

    @classmethod
    def of(cls, path: Path, key: str, value: Tensor) -> LoadedTensor:
        """The tensor `value` in place of the one that `path` would hold under `key`."""
        dtype = next(name for name, dtype in STORED_DTYPES.items() if dtype == value.dtype)
        return cls(path, key, dtype, tuple(value.shape), value.contiguous())

    def _mapped(self) -> Tensor:
        return self.value


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint folder; names, dtypes and shapes are in memory, values are not.

    Attributes:
        folder: where the files are.
        shards: the tensors of each safetensors file, in the order in which they are stored.
    """

    folder: Path
    shards: dict[Path, list[StoredTensor]]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Open the safetensors files of a folder.

        Raises:
            ModelError: there are none, one is missing or damaged, or they hold no tensors.
        """
        checkpoint = cls(folder, {path: _stored_tensors(path) for path in weight_files(folder)})
        if not checkpoint.tensors:
            raise ModelError(f"{folder} holds no tensors; copy the model again")
        return checkpoint

    @classmethod
    def of_model(cls, folder: Path, model: nn.Module) -> Checkpoint:
        """The weights of a loaded model, as if `folder` held them in one safetensors file; tied weights once."""
        path = folder / SINGLE
        parameters = dict(model.named_parameters())
        return cls(folder, {path: [LoadedTensor.of(path, key, value.detach()) for key, value in parameters.items()]})

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor by its key in the files."""
        return {tensor.key: tensor for shard in self.shards.values() for tensor in shard}


def ties_of(model: nn.Module) -> dict[str, list[str]]:
    """The other names of each parameter of a model, for parameters that several modules share."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups[id(parameter)].append(name)
    return {name: [other for other in names if other != name] for names in groups.values() for name in names}


class ModelCheckpoint:
    """A checkpoint, with its tensors under the names that a model uses for them.

    Args:
        checkpoint: the files.
        model: the model whose weights they are; may be on the meta device.
        root: path of that model within the adapted model, "" if they are the same.
    """

    def __init__(self, checkpoint: Checkpoint, model: nn.Module, root: str = "") -> None:
        self.folder = checkpoint.folder
        self.shards = checkpoint.shards
        self.model = model
        self._stored = checkpoint.tensors
        self._root = root
        body = getattr(model, "base_model_prefix", "")
        self._prefix = f"{body}." if body else ""

    @cached_property
    def names(self) -> dict[str, str]:
        """The model's name of each tensor, by its key in the files; the key itself if the model has no such tensor."""
        known = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        return {key: _parameter_name(key, known, self._prefix) or key for key in self._stored}

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor, by its name in the model.

        Raises:
            ModelError: two tensors are of the same parameter.
        """
        tensors: dict[str, StoredTensor] = {}
        for key, tensor in self._stored.items():
            other = tensors.setdefault(self.names[key], tensor)
            if other is not tensor:
                raise ModelError(
                    f"{self.folder} holds both {other.key} and {key}, two tensors of the same parameter "
                    f"{self.names[key]}; save the model again with save_pretrained"
                )
        return tensors

    @cached_property
    def ties(self) -> dict[str, list[str]]:
        """The other names of each parameter; see `ties_of`."""
        return ties_of(self.model)

    def weight(self, layer: str) -> StoredTensor | None:
        """The stored weight of a layer, under its own name or that of a weight tied to it; None if absent."""
        name = f"{layer}.weight"
        return next((self.tensors[key] for key in (name, *self.ties.get(name, ())) if key in self.tensors), None)

    def is_transposed(self, layer: str) -> bool:
        """Whether the weight of a layer is stored as (in, out)."""
        return isinstance(self.model.get_submodule(layer), Conv1D)

    def candidates(self, layer: str, shape: tuple[int, int]) -> Iterator[Tensor]:
        """Float tensors (out, in) that may be the weight of a layer, most likely first.

        For layers whose parameters have other names than those in the files, as quantized layers do. A tensor stored
        (in, out), as transformers' Conv1D stores it, is returned transposed; a square one both ways.

        Args:
            layer: its name in the adapted model.
            shape: (out, in).

        Raises:
            ModelError: a file cannot be read.
        """
        for key in self._candidate_keys(layer):
            stored = self._stored[key]
            if stored.is_float and shape in (stored.shape, stored.shape[::-1]):
                tensor = stored.read()
                if stored.shape == shape:
                    yield tensor
                if stored.shape[::-1] == shape:
                    yield tensor.T

    def _candidate_keys(self, layer: str) -> list[str]:
        """Keys that name the weight of a layer, else those that share the longest ending with its name.

        Files written by another class may name the body of the model differently, or not at all.
        """
        name = f"{layer.removeprefix(f'{self._root}.') if self._root else layer}.weight"
        if name in self._stored:
            return [name]
        spelled = [key for key in self._stored if _parameter_name(key, {name}, self._prefix)]
        if spelled:
            return spelled
        parts = name.split(".")
        for start in range(len(parts) - 1):
            ending = ".".join(parts[start:])
            keys = [key for key in self._stored if key.endswith(f".{ending}") or key == ending]
            if keys:
                # An ending without the number of the block matches every block.
                return keys if any(part.isdigit() for part in parts[start:]) or len(keys) == 1 else []
        return []


def find_checkpoint(model: nn.Module, given: str | None) -> tuple[ModelCheckpoint | None, str]:
    """The checkpoint that a model was loaded from, without downloading anything.

    Args:
        model: the model that is adapted.
        given: a folder or a hub id; None for the model's own `name_or_path`.

    Returns:
        The checkpoint, or None if there is none, and a description of what was looked for.

    Raises:
        ModelError: there is a checkpoint, but it is incomplete or damaged.
    """
    root, owner = next(((n, m) for n, m in model.named_modules() if isinstance(m, PreTrainedModel)), ("", None))
    config = getattr(owner or model, "config", None)
    names = [given] if given else [getattr(owner, "name_or_path", None), getattr(config, "name_or_path", None)]
    names = [name for name in dict.fromkeys(names) if isinstance(name, str) and name]
    if not names:
        return None, "the model has no name_or_path to look for its checkpoint in"
    for name in names:
        folder = _local_folder(name, None if given else getattr(config, "_commit_hash", None))
        if folder is not None:
            return ModelCheckpoint(Checkpoint.open(folder), owner or model, root), repr(name)
    shown = " and ".join(repr(name) for name in names)
    return None, f"no {SINGLE} or {INDEX} in {shown} (a folder, or the hub's cache on this machine; never pickles)"


def _local_folder(name: str, revision: str | None) -> Path | None:
    """The folder of a checkpoint, or the snapshot of a hub model in the cache; None if it has no safetensors."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder if has_weight_files(folder) else None
    for file in (SINGLE, INDEX):
        try:
            cached: Any = try_to_load_from_cache(name, file, revision=revision)
        except ValueError:  # neither a folder nor the id of a model on the hub
            return None
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def _stored_tensors(path: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file, in the order of their bytes."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.offset_keys()}
            return [StoredTensor(path, key, view.get_dtype(), tuple(view.get_shape())) for key, view in slices.items()]
    except (SafetensorError, OSError) as fault:
        raise ModelError(f"{path} is not a complete safetensors file ({fault}); copy the model again") from fault


def _parameter_name(key: str, known: Collection[str], prefix: str) -> str | None:
    """The name in `known` of a checkpoint key, which may lack the body's prefix or use an old spelling; else None."""
    modern = key
    for old, new in _OLD_ENDINGS.items():
        modern = modern.removesuffix(old) + new if modern.endswith(old) else modern
    spellings = (key, prefix + key, key.removeprefix(prefix), modern, prefix + modern)
    return next((spelling for spelling in spellings if spelling in known), None)

"""Tails on disk: one safetensors file each, named by the weight that it was computed from and checked when read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kasatune.errors import ModelError
from kasatune.io.atomic import atomic_write
from kasatune.linalg import TailSVD
from kasatune.weights.fingerprint import weight_values_sha256

SUFFIX = ".safetensors"
# Part of every key: raised when tail_svd comes to give other triplets for the same weight.
ALGORITHM = 1
_STATED = "kasatune"


@dataclass(frozen=True)
class TailKey:
    """What a tail is a function of.

    The convention has no place in it: two conventions that drop the same number of triplets drop the same tail.

    Attributes:
        digest: of the weight's values, as `weight_values_sha256` returns it.
        shape: (out, in) of the weight.
        dropped: number of triplets.
    """

    digest: str
    shape: tuple[int, int]
    dropped: int

    @classmethod
    def of(cls, W: Tensor, dropped: int) -> TailKey:
        """The key of the tail of W (out, in)."""
        return cls(weight_values_sha256(W), (W.shape[0], W.shape[1]), dropped)

    @property
    def filename(self) -> str:
        """The name of the file that holds the tail."""
        return f"{self.digest[:40]}-{self.dropped}-v{ALGORITHM}{SUFFIX}"


def write_tail(folder: Path, key: TailKey, tail: TailSVD) -> Path:
    """Write a tail under a temporary name, then rename: any number of processes may write the same one.

    Raises:
        OSError: the folder cannot be written.
    """
    path = folder / key.filename
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tail._asdict().items()}
    try:
        # One entry, because safetensors writes several in any order.
        stated = json.dumps({**_identity(key), "checksum": _checksum(tensors)}, sort_keys=True)
        with atomic_write(path, shared=True) as temporary:
            save_file(tensors, temporary, metadata={_STATED: stated})
    except SafetensorError as fault:
        raise OSError(f"{path}: {fault}") from fault
    return path


def read_tail(path: Path, key: TailKey) -> TailSVD | None:
    """The tail in a file; None where there is no file.

    Raises:
        ModelError: the file is damaged, or of another weight.
    """
    try:
        with safe_open(path, framework="pt") as file:
            stated = json.loads((file.metadata() or {}).get(_STATED, "{}"))
            tensors = {name: file.get_tensor(name) for name in TailSVD._fields}
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError) as fault:
        raise ModelError(f"{path} cannot be read: {fault}. It was cut short or damaged; remove it") from fault
    rows, columns = key.shape
    shapes = {"U": (rows, key.dropped), "S": (key.dropped,), "Vh": (key.dropped, columns)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes or not isinstance(stated, dict) or stated.get("checksum") != _checksum(tensors):
        raise ModelError(f"{path} is damaged: its content is not what its checksum says; remove it")
    if any(stated.get(name) != value for name, value in _identity(key).items()):
        raise ModelError(f"{path} is the tail of another weight than its name says; remove it")
    return TailSVD(**tensors)


def _identity(key: TailKey) -> dict[str, Any]:
    return {"weight": key.digest, "shape": list(key.shape), "dropped": key.dropped, "algorithm": ALGORITHM}


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in TailSVD._fields:
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()

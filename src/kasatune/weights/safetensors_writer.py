"""Write safetensors files one tensor at a time, so that a checkpoint larger than memory can be written."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kasatune.errors import ModelError
from kasatune.weights.safetensors_reader import STORED_DTYPES, StoredTensor


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to write: the bytes of a stored tensor, or the result of `compute`, called when it is written.

    Attributes:
        key: its name in the new file.
        dtype: as safetensors names it.
        shape: of the tensor.
        source: the tensor whose bytes are copied; None with `compute`.
        compute: returns the tensor, in `dtype` and `shape`.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    source: StoredTensor | None = None
    compute: Callable[[], Tensor] | None = None

    @property
    def size(self) -> int:
        """Number of bytes."""
        return math.prod(self.shape) * STORED_DTYPES[self.dtype].itemsize

    def content(self) -> memoryview:
        """The bytes to write.

        Raises:
            ModelError: the source cannot be read, or `compute` returned another shape or dtype.
        """
        if self.compute is None:
            assert self.source is not None
            return self.source.content()
        tensor = self.compute().contiguous()
        if tuple(tensor.shape) != self.shape or tensor.dtype != STORED_DTYPES[self.dtype]:
            raise ModelError(
                f"{self.key} was computed as {list(tensor.shape)} {tensor.dtype}, but planned as {list(self.shape)} "
                f"{STORED_DTYPES[self.dtype]}"
            )
        return tensor.reshape(-1).view(torch.uint8).numpy().data


def write_safetensors(path: Path, planned: Sequence[PlannedTensor]) -> str:
    """Write a safetensors file tensor by tensor; at most one is in memory.

    Returns:
        SHA-256 of the file, as hexadecimal digits.

    Raises:
        ModelError: as `PlannedTensor.content`.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in planned:
        end = offset + tensor.size
        header[tensor.key] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (struct.pack("<Q", len(text)), text):
            file.write(part)
            digest.update(part)
        for tensor in planned:
            content = tensor.content()
            file.write(content)
            digest.update(content)
            del content  # before the next one is read
    return digest.hexdigest()

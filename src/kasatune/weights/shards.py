"""Checkpoints in safetensors, read and written one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kasatune.errors import ModelError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_CHUNK = 16 * 2**20
_LARGEST_HEADER = 100 * 2**20


@dataclass(frozen=True)
class Entry:
    """A tensor in a checkpoint file.

    Attributes:
        path: the file.
        key: its name in there.
        dtype: as safetensors writes it, for example "BF16".
        shape: of the tensor.
        start: where its bytes begin in the file.
        size: number of bytes.
    """

    path: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def read(self) -> Tensor:
        """The tensor, in memory of its own.

        Raises:
            ModelError: its dtype is none that arithmetic is done in here.
        """
        if self.dtype not in DTYPES:
            raise ModelError(
                f"{self.path.name}: {self.key} is stored as {self.dtype}; give a base in float32, float16 or bfloat16 "
                "with --base"
            )
        content = bytearray(self.size)
        with self.path.open("rb") as file:
            file.seek(self.start)
            file.readinto(content)
        return torch.frombuffer(content, dtype=DTYPES[self.dtype]).reshape(self.shape)

    def chunks(self) -> Iterator[bytes]:
        """Its bytes as they are, a part at a time."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            left = self.size
            while left:
                part = file.read(min(left, _CHUNK))
                if not part:
                    raise ModelError(f"{self.path} ends before its last tensor; copy the model again")
                left -= len(part)
                yield part


@dataclass(frozen=True)
class Planned:
    """A tensor to be written: the bytes of an entry as they are, or what `make` gives when its turn comes.

    Attributes:
        key: its name in the new file.
        dtype: as safetensors writes it.
        shape: of the tensor.
        entry: where the bytes come from, None with `make`.
        make: gives the tensor, in `dtype` and `shape`.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    entry: Entry | None = None
    make: Callable[[], Tensor] | None = None

    @property
    def size(self) -> int:
        """Number of bytes."""
        if self.entry is not None:
            return self.entry.size
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def dtype_name(dtype: torch.dtype) -> str:
    """How safetensors writes a floating dtype."""
    return _NAMES[dtype]


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in the order of their names.

    Raises:
        ModelError: there are none, or the index names one that is missing or lies elsewhere.
    """
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as fault:
            raise ModelError(f"{folder / INDEX} is damaged ({fault}); copy the model again") from fault
        bad = [name for name in names if not isinstance(name, str) or Path(name).name != name]
        missing = [name for name in names if name not in bad and not (folder / name).is_file()]
        if bad or missing:
            raise ModelError(f"{folder}: the index names {(bad or missing)[0]!r}, which is not there; copy it again")
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    hint = "; pickled weights are not read: save the model again with save_pretrained" if _has_pickles(folder) else ""
    raise ModelError(f"{folder} holds no {SINGLE}{hint}")


def entries(path: Path) -> list[Entry]:
    """The tensors of a safetensors file, in the order of their bytes.

    Raises:
        ModelError: the header is damaged, or claims more than the file holds.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _LARGEST_HEADER):
                raise ValueError("the header claims more than the file holds")
            header = json.loads(file.read(length).decode("utf-8"))
        header.pop("__metadata__", None)
        start = 8 + length
        found = [
            Entry(path, key, e["dtype"], tuple(e["shape"]), start + e["data_offsets"][0], _span(e["data_offsets"]))
            for key, e in header.items()
        ]
        if any(entry.size < 0 or entry.start < start or entry.start + entry.size > size for entry in found):
            raise ValueError("a tensor lies outside of the file")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise ModelError(f"{path} is no whole safetensors file ({fault}); copy the model again") from fault
    return sorted(found, key=lambda entry: entry.start)


def write_shard(path: Path, planned: Sequence[Planned]) -> str:
    """Write a safetensors file tensor by tensor: no more than one is in memory.

    Returns:
        SHA-256 of the file.
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
            for part in _content(tensor):
                file.write(part)
                digest.update(part)
    return digest.hexdigest()


def _content(tensor: Planned) -> Iterator[Any]:
    if tensor.make is None:
        assert tensor.entry is not None
        yield from tensor.entry.chunks()
        return
    made = tensor.make().contiguous()
    if tuple(made.shape) != tensor.shape or made.dtype != DTYPES[tensor.dtype]:
        raise ModelError(f"{tensor.key} came out as {list(made.shape)} {made.dtype}, planned was {tensor.shape}")
    content: Any = made.reshape(-1).view(torch.uint8).numpy()
    yield memoryview(content)


def _span(offsets: Sequence[int]) -> int:
    first, last = offsets
    return int(last) - int(first)


def _has_pickles(folder: Path) -> bool:
    return any(folder.glob("*.bin")) or any(folder.glob("*.pt"))

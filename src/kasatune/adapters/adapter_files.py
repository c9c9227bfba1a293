"""Read and write adapter directories (adapter_config.json, adapter_model.safetensors); file contents are untrusted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import stat
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kasatune.errors import AdapterError, NotFiniteError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LARGEST_JSON = 16 * 2**20
PREFIX = "base_model.model."

_FLOATING = {"F64", "F32", "F16", "BF16"}


class Header(NamedTuple):
    """Configuration and tensor shapes of an adapter, before any tensor is read.

    Attributes:
        folder: the adapter's directory.
        config: its configuration.
        shapes: shapes of its tensors, by checkpoint key.
        repeated: shapes of base weights, which PEFT saves along with adapted or resized embeddings, by checkpoint key.
    """

    folder: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    repeated: dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class AdapterFiles:
    """An adapter as plain data: configuration and tensors by checkpoint key."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


def read_header(directory: str | os.PathLike[str]) -> Header:
    """Read the configuration of an adapter directory, and the names and shapes of its tensors.

    Raises:
        AdapterError: a file is missing, not a regular file, too large, damaged, or of another kind; a tensor is not
            floating-point. Only safetensors files are read, never pickles.
    """
    folder = Path(directory)
    config = read_json(folder, CONFIG)
    if not isinstance(config.get("peft_type"), str):
        raise AdapterError(f"{folder / CONFIG} names no peft_type; it is not an adapter configuration")
    path = _regular_file(folder, WEIGHTS)
    shapes: dict[str, tuple[int, ...]] = {}
    repeated: dict[str, tuple[int, ...]] = {}
    with _readable(path), safe_open(path, framework="pt") as file:
        keys = set(file.keys())
        for key in sorted(keys):
            view = file.get_slice(key)
            if key.endswith(".base_layer.weight"):
                repeated[key] = tuple(view.get_shape())
                continue
            if view.get_dtype() not in _FLOATING:
                raise AdapterError(f"{path}: {_shown(key)} holds {view.get_dtype()}, not floating-point numbers")
            if not is_echo(key, keys):
                shapes[key] = tuple(view.get_shape())
    return Header(folder, config, shapes, repeated)


def read_repeated(header: Header) -> dict[str, Tensor]:
    """Read the base weights that an adapter contains; see `Header.repeated`.

    Raises:
        AdapterError: they cannot be read.
    """
    path = header.folder / WEIGHTS
    with _readable(path), safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in header.repeated}


def read_tensors(header: Header) -> AdapterFiles:
    """Read the tensors of an adapter whose header was read.

    Raises:
        AdapterError: they cannot be read, or one holds NaN or infinity (NotFiniteError).
    """
    path = header.folder / WEIGHTS
    with _readable(path), safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in header.shapes}
    broken = [key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise NotFiniteError(f"{path}: {listed(broken)} hold NaN or infinity; the training diverged or the file is bad")
    return AdapterFiles(header.config, tensors)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object from an adapter directory.

    Raises:
        AdapterError: the file is missing, not a regular file, larger than 16 MiB, not UTF-8, or not a JSON object.
    """
    path = _regular_file(folder, name)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_JSON + 1)
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > LARGEST_JSON:
        raise AdapterError(f"{path} is larger than {LARGEST_JSON // 2**20} MiB, too large for an adapter configuration")
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise AdapterError(
            f"{path} is not UTF-8 text: byte {error.start} is invalid; copy the adapter again"
        ) from error
    except RecursionError as error:
        raise AdapterError(f"{path} is nested too deeply to be an adapter configuration") from error
    except ValueError as error:
        raise AdapterError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


def is_echo(key: str, keys: Collection[str] = ()) -> bool:
    """Whether a tensor duplicates another: with bias="all" PEFT saves the bias of a head three times.

    So it does with the embeddings of a resized vocabulary that are also in `modules_to_save`.

    Args:
        key: of the tensor.
        keys: of all tensors of the adapter.
    """
    plain = key.replace(".modules_to_save.", ".").replace(".original_module.", ".")
    return plain != key and (key.endswith(".bias") or plain in keys)


def write(files: AdapterFiles, directory: Path) -> None:
    """Write configuration and tensors into an existing directory; equal content gives equal bytes."""
    tensors = {key: files.tensors[key].detach().cpu().contiguous() for key in sorted(files.tensors)}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    write_json(directory / CONFIG, files.config)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with its keys in order."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listed(names: list[str], most: int = 3) -> str:
    """The first few names of a list, for a message."""
    shown = ", ".join(_shown(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _shown(name: str) -> str:
    """A name from a file, safe to print: control characters escaped, truncated to 120 characters."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= 120 else text[:117] + "..."


def _regular_file(folder: Path, name: str) -> Path:
    """A regular file of the folder, or of the hub cache that the folder is a snapshot of.

    Raises:
        AdapterError: it is missing, not a regular file, or a link to another directory.
    """
    path = folder / name
    try:
        mode = path.stat().st_mode
        target = path.resolve(strict=True)
        home = folder.resolve(strict=True)
    except (OSError, ValueError, RuntimeError) as error:
        hint = "; adapters in pickle format are not read" if (folder / "adapter_model.bin").exists() else ""
        raise AdapterError(f"{folder} contains no {name}{hint}. Give the directory of an adapter.") from error
    if not stat.S_ISREG(mode):
        raise AdapterError(f"{path} is not a regular file")
    blobs = [parent.parent / "blobs" for parent in (home, *home.parents) if parent.name == "snapshots"]
    if target.parent != home and target.parent not in blobs:
        raise AdapterError(f"{path} is a link to a file outside its directory; replace it with a copy of the file")
    return path


@contextmanager
def _readable(path: Path) -> Generator[None]:
    try:
        yield
    except AdapterError:
        raise
    except (SafetensorError, ValueError, OSError, RuntimeError, OverflowError) as error:
        raise AdapterError(f"{path} cannot be read: {error}. The file is truncated or damaged.") from error


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def is_number(value: object) -> bool:
    """Whether a value from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf

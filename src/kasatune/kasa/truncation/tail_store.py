"""Store truncated triplets (tails) on disk: the user's cache, and the directory that `kasatune decompose` writes.

A tail is one safetensors file, named by the SHA-256 of the weight's values and by the number of triplets, and verified
by a checksum when it is read. Cache and directory differ in where they are and in what a missing or damaged file means.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kasatune.errors import InputError, ModelError
from kasatune.io.atomic import atomic_write, remove_unfinished
from kasatune.linalg import TailSVD
from kasatune.weights.fingerprint import weight_values_sha256
from kasatune.wording import counted

logger = logging.getLogger("kasatune")

SUFFIX = ".safetensors"
ALGORITHM = 1
"""Part of every key; raised when `tail_svd` returns other triplets for the same weight than before."""

CACHE_FOLDER, CACHE_LIMIT = "KASATUNE_CACHE", "KASATUNE_CACHE_LIMIT"
DEFAULT_LIMIT_GIB = 5.0
SMALLEST_CACHED = 256
"""Below this min(out, in), a decomposition is as fast as opening a file."""

INDEX = "index.json"
TAILS = "tails"
FORMAT = "kasatune tails"

_METADATA = "kasatune"
_GIB = 2**30
_ABANDONED_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class TailKey:
    """What determines a tail: the weight's values and the number of triplets dropped.

    The convention is no part of it: two conventions that drop the same number of triplets drop the same tail.

    Attributes:
        digest: of the weight's values, as `weight_values_sha256` returns it.
        shape: (out, in) of the weight.
        drop: number of triplets.
    """

    digest: str
    shape: tuple[int, int]
    drop: int

    @classmethod
    def of(cls, W: Tensor, drop: int) -> TailKey:
        """The key of the tail of W (out, in)."""
        return cls(weight_values_sha256(W), (W.shape[0], W.shape[1]), drop)

    @property
    def filename(self) -> str:
        """The name of the file that holds the tail."""
        return f"{self.digest[:40]}-{self.drop}-v{ALGORITHM}{SUFFIX}"


def write_tail(folder: Path, key: TailKey, tail: TailSVD) -> Path:
    """Write a tail atomically and return its path; several processes may write the same tail at once.

    Raises:
        OSError: the folder cannot be written.
    """
    path = folder / key.filename
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tail._asdict().items()}
    try:
        # One entry, because safetensors writes several in any order.
        metadata = json.dumps({**_identity(key), "checksum": _checksum(tensors)}, sort_keys=True)
        with atomic_write(path, shared=True) as temporary:
            save_file(tensors, temporary, metadata={_METADATA: metadata})
    except SafetensorError as fault:
        raise OSError(f"{path}: {fault}") from fault
    return path


def read_tail(path: Path, key: TailKey) -> TailSVD | None:
    """The tail in a file; None where there is no file.

    Raises:
        ModelError: the file is damaged, or holds the tail of another weight.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Any = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
            tensors = {name: file.get_tensor(name) for name in TailSVD._fields}
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError) as fault:
        raise ModelError(f"{path} cannot be read: {fault}. It is truncated or damaged; remove it") from fault
    rows, columns = key.shape
    expected = {"U": (rows, key.drop), "S": (key.drop,), "Vh": (key.drop, columns)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != expected or not isinstance(metadata, dict):
        raise ModelError(f"{path} is damaged: shapes or metadata are not those of its key; remove it")
    metadata = cast("dict[str, Any]", metadata)
    if metadata.get("checksum") != _checksum(tensors):
        raise ModelError(f"{path} is damaged: its content does not match its checksum; remove it")
    if any(metadata.get(name) != value for name, value in _identity(key).items()):
        raise ModelError(f"{path} holds the tail of another weight than its name gives; remove it")
    return TailSVD(**tensors)


class TailCache:
    """Tails in files of one folder; the least recently used are removed to make room for new ones.

    A fault of the cache never makes the caller fail: a damaged file is removed, with a warning, and its tail computed
    again; a folder that cannot be written stores nothing. Any number of processes may share one cache.

    Args:
        folder: where the files are; created at the first write.
        limit: maximum size of all files together, in bytes.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._written = False
        self._usable = True

    @classmethod
    def of_user(cls) -> TailCache | None:
        """The user's cache: $KASATUNE_CACHE, else $XDG_CACHE_HOME/kasatune, else ~/.cache/kasatune; None if off.

        KASATUNE_CACHE=off switches it off. KASATUNE_CACHE_LIMIT is its maximum size in GiB, 5 by default.

        Raises:
            InputError: the limit is not a number above 0.
        """
        folder = os.environ.get(CACHE_FOLDER)
        if folder is not None and folder.strip().lower() in ("off", "0", "no", "false", ""):
            return None
        try:
            limit = float(os.environ.get(CACHE_LIMIT) or DEFAULT_LIMIT_GIB)
            if not 0 < limit < float("inf"):
                raise ValueError
        except ValueError:
            raise InputError(
                f"{CACHE_LIMIT}={os.environ.get(CACHE_LIMIT)!r} is not a number of GiB above 0; set one, or "
                f"{CACHE_FOLDER}=off"
            ) from None
        try:
            home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError:  # a user without a home directory
            return None
        root = Path(folder).expanduser() if folder else home / "kasatune"
        return cls(root / "tails", int(limit * _GIB))

    def get(self, key: TailKey) -> TailSVD | None:
        """The tail of a key; None where the cache holds no undamaged file of it."""
        path = self.folder / key.filename
        try:
            tail = read_tail(path, key)
        except ModelError as fault:
            warnings.warn(f"a cached tail is computed again: {fault}", stacklevel=2)
            _remove(path)
            return None
        if tail is not None:
            with suppress(OSError):
                os.utime(path)  # marks it as recently used
        return tail

    def put(self, key: TailKey, tail: TailSVD) -> None:
        """Store a tail."""
        if not self._usable:
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_tail(self.folder, key, tail)
            self._written = True
        except OSError as fault:
            self._usable = False
            logger.warning("tails are not cached: %s cannot be written (%s)", self.folder, fault)

    def get_tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and the metadata of a file that `put_tensors` wrote; None where there is no undamaged one."""
        path = self.folder / f"{name}{SUFFIX}"
        try:
            with safe_open(path, framework="pt") as file:
                metadata: Any = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
                keys: list[str] = list(file.keys())
                tensors = {key: file.get_tensor(key) for key in keys}
            if metadata.pop("checksum", None) != _checksum(tensors):
                raise ValueError("its content does not match its checksum")
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, AttributeError) as fault:
            warnings.warn(f"cached tails are computed again: {path} is damaged: {fault}", stacklevel=2)
            _remove(path)
            return None
        with suppress(OSError):
            os.utime(path)
        return tensors, metadata

    def put_tensors(self, name: str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Store tensors, which must not share memory, and plain data in one file."""
        if not self._usable:
            return
        held = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        described = json.dumps({**metadata, "checksum": _checksum(held)}, sort_keys=True)
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_write(self.folder / f"{name}{SUFFIX}", shared=True) as temporary:
                save_file(held, temporary, metadata={_METADATA: described})
            self._written = True
        except (OSError, SafetensorError) as fault:
            self._usable = False
            logger.warning("tails are not cached: %s cannot be written (%s)", self.folder, fault)

    def trim(self) -> None:
        """Remove the least recently used files above the limit, and what killed processes left unfinished."""
        if not self._written:
            return
        self._written = False
        files: list[tuple[float, int, Path]] = []
        try:
            remove_unfinished(self.folder, before=time.time() - _ABANDONED_SECONDS)
            for entry in os.scandir(self.folder):
                if entry.name.endswith(SUFFIX):
                    state = entry.stat()
                    files.append((state.st_mtime, state.st_size, Path(entry.path)))
        except OSError:
            return
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit:
                break
            _remove(path)
            total -= size


class TailDirectory:
    """The tails of a checkpoint in a directory of `kasatune decompose`, looked up by the values of a weight.

    Layer names need not be those of the checkpoint.

    Args:
        folder: the directory.

    Raises:
        InputError: it holds no complete index, or the index of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_index(folder)
        self._stored: dict[str, int] = {layer["weight"]: layer["dropped"] for layer in self.index["layers"].values()}

    @property
    def truncate_by(self) -> str:
        """Which components the directory holds, "magnitude" or "activation"."""
        return self.index.get("truncate_by", "magnitude")

    def get_by_activation(self, key: TailKey, name: str) -> TailSVD:
        """The component of a weight that activations use least, of exactly the rank `key.drop`.

        Raises:
            InputError: the directory holds the triplets of smallest magnitude.
            ModelError: it does not hold this weight or this rank, or its file is damaged.
        """
        if self.truncate_by != "activation":
            raise InputError(
                f"tails: {self.folder} holds the triplets of smallest magnitude, and truncate_by is 'activation': make "
                "a directory with `kasatune decompose --truncate-by activation`, or leave tails out"
            )
        stored = self._stored.get(key.digest)
        if stored is not None and stored != key.drop:
            raise ModelError(
                f"tails: {self.folder} holds a component of rank {stored} of {name}, and one of rank {key.drop} is "
                "dropped; a component by activation serves its own rank only: make it again with `kasatune decompose "
                f"--truncate-by activation --rank {key.drop}`, or set drop to {stored}"
            )
        if stored is None:
            raise ModelError(f"tails: {self._refusal(key, name, None)}")
        tail = read_tail(self.folder / TAILS / key.filename, key)
        if tail is None:
            raise ModelError(f"{self.folder / TAILS / key.filename} is missing; run `kasatune decompose` again")
        return tail

    def layer(self, digest: str) -> dict[str, Any]:
        """The entry of a weight in the index."""
        return next(layer for layer in self.index["layers"].values() if layer["weight"] == digest)

    def get(self, key: TailKey, name: str) -> TailSVD | None:
        """The tail of a weight, its first triplets cut off where more are stored; None where its file is damaged.

        Args:
            key: of the tail.
            name: of the layer, for messages.

        Raises:
            ModelError: the directory does not hold this weight, or too few of its triplets.
        """
        stored = self._stored.get(key.digest)
        if stored is None or stored < key.drop:
            raise ModelError(f"tails: {self._refusal(key, name, stored)}")
        try:
            longest = TailKey(key.digest, key.shape, stored)
            path = self.folder / TAILS / longest.filename
            tail = read_tail(path, longest)
            if tail is None:
                raise ModelError(f"{path} is missing")
        except ModelError as fault:
            warnings.warn(f"the tail of {name} is computed again: {fault}", stacklevel=2)
            return None
        first = stored - key.drop
        return TailSVD(*(t.contiguous() for t in (tail.U[:, first:], tail.S[first:], tail.Vh[first:])))

    def _refusal(self, key: TailKey, name: str, stored: int | None) -> str:
        if stored is not None:
            return (
                f"{self.folder} holds {counted(stored, 'singular triplet')} of {name}, but {key.drop} are "
                "dropped: make it again "
                f"with `kasatune decompose --rank {key.drop}`, lower r, or leave tails out"
            )
        return (
            f"{self.folder} holds no tail of {name}: it was made from {self.index['model']} (dtype "
            f"{self.index['dtype']}), whose weights have other values or whose decomposition left this layer out; "
            "decompose the same checkpoint with --target for this layer and --dtype as the model is loaded, or leave "
            "tails out"
        )


def read_index(folder: Path) -> dict[str, Any]:
    """The content of index.json in a directory of `kasatune decompose`.

    Raises:
        InputError: missing, damaged, or of another version.
    """
    path = folder / INDEX
    if not path.is_file():
        reason = "holds no finished decomposition" if folder.is_dir() else "is not a directory"
        raise InputError(f"{folder} {reason}; give a directory of a finished `kasatune decompose`")
    index: dict[str, Any] = {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        valid = (
            index["format"] == FORMAT
            and isinstance(index["rank"], int)
            and isinstance(index["model"], str)
            and isinstance(index["dtype"], str)
            and all(
                isinstance(layer["weight"], str) and isinstance(layer["dropped"], int)
                for layer in index["layers"].values()
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise InputError(f"{path} is damaged; run `kasatune decompose` again with --overwrite")
    if index.get("algorithm") != ALGORITHM:
        raise InputError(
            f"{path} was written by another version of kasatune; run `kasatune decompose` again with --overwrite"
        )
    return index


def _identity(key: TailKey) -> dict[str, Any]:
    return {"weight": key.digest, "shape": list(key.shape), "dropped": key.drop, "algorithm": ALGORITHM}


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in TailSVD._fields if set(tensors) == set(TailSVD._fields) else sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)

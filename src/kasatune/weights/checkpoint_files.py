"""Which files of a model folder hold its weights: those that transformers' from_pretrained reads, in its order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from kasatune.errors import ModelError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_INDEX_SUFFIX = ".safetensors.index.json"
_ADAPTER = "adapter_config.json"
_NAMED = "transformers_weights"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads from a folder.

    The file or index that config.json names under `transformers_weights`, else model.safetensors, else the shards of
    model.safetensors.index.json, by name. Variants such as model.fp16.safetensors are never read, and neither are
    pickles.

    Raises:
        ModelError: there are none; an index is damaged, or names a file that is missing or outside the folder; a tensor
            is in several files, or a single file and an index are there, with different contents; or the folder also
            holds an adapter, which transformers would attach to the model.
    """
    if (folder / _ADAPTER).is_file():
        raise ModelError(
            f"{folder} holds {_ADAPTER} beside the model, and transformers would load that adapter with it; move the "
            "files of the adapter to another folder"
        )
    named = _named_in_config(folder)
    if named is not None:
        return _shards(folder, folder / named) if named.endswith(_INDEX_SUFFIX) else [folder / named]
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        if index.is_file():
            _require_same_content(single, index)
        return [single]
    if index.is_file():
        return _shards(folder, index)
    raise ModelError(f"{folder} holds no {SINGLE} or {INDEX}{_other_weights(folder)}")


def has_weight_files(folder: Path) -> bool:
    """Whether a folder holds safetensors that transformers would read, complete or not."""
    return any((folder / name).is_file() for name in (SINGLE, INDEX)) or _named_in_config(folder) is not None


def is_index(path: Path) -> bool:
    """Whether a file is an index of shards, of safetensors or of pickles."""
    return path.name.endswith(".index.json")


def _named_in_config(folder: Path) -> str | None:
    """The weight file or index that config.json names; None if it names none.

    Raises:
        ModelError: it is not a safetensors file of the folder, or it is missing.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # reported where the configuration is read
        return None
    name = config.get(_NAMED) if isinstance(config, dict) else None
    if name is None:
        return None
    if not isinstance(name, str) or Path(name).name != name or not name.endswith((".safetensors", _INDEX_SUFFIX)):
        raise ModelError(
            f"{path}: {_NAMED} is {name!r}, not the name of a safetensors file or index in the same folder"
        )
    if not (folder / name).is_file():
        raise ModelError(f"{path}: {_NAMED} names {name!r}, which is missing; copy the model again")
    return name


def _shards(folder: Path, index: Path) -> list[Path]:
    """The files that an index names; as in transformers, their tensors count and not those that the index names."""
    weight_map = _weight_map(index)
    paths = [folder / name for name in sorted(set(weight_map.values()))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ModelError(f"{index} names {missing[0]!r}, which is missing; copy the model again")
    holders: dict[str, Path] = {}
    for path in paths:
        for key in _keys(path):
            if key in holders and not _equal(holders[key], path, key):
                raise ModelError(f"{holders[key]} and {path.name} hold different tensors {key}; copy the model again")
            holders[key] = path
    return paths


def _require_same_content(single: Path, index: Path) -> None:
    """Refuse a single file beside an index of other weights: one of the two is out of date.

    Files that the index names and that are missing are not compared.
    """
    weight_map = _weight_map(index)
    keys = set(_keys(single))
    different = sorted(keys ^ set(weight_map))
    if not different:
        paths = {name: single.parent / name for name in sorted(set(weight_map.values()))}
        held = {name: set(_keys(path)) for name, path in paths.items() if path.is_file()}
        different = [
            key
            for key, name in weight_map.items()
            if key in held.get(name, ()) and not _equal(single, paths[name], key)
        ]
    if different:
        raise ModelError(
            f"{single.parent} holds both {single.name} and {index.name}, and they differ in {different[0]!r}; "
            f"transformers reads {single.name}: remove the one that is out of date"
        )


def _weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor.

    Raises:
        ModelError: the index is damaged or names a file outside of its folder.
    """
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        outside = [name for name in weight_map.values() if Path(name).name != name]
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as fault:
        raise ModelError(f"{index} is not an index of safetensors files ({fault}); copy it again") from fault
    if outside:
        raise ModelError(f"{index} names {outside[0]!r}, which is not in the same folder; copy the model again")
    return weight_map


def _keys(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as fault:
        raise ModelError(f"{path} is not a complete safetensors file ({fault}); copy the model again") from fault


def _equal(one: Path, other: Path, key: str) -> bool:
    """Whether two files hold the same tensor under a name, bit for bit."""
    with safe_open(one, framework="pt") as first, safe_open(other, framework="pt") as second:
        views: list[Any] = [file.get_slice(key) for file in (first, second)]
        if views[0].get_dtype() != views[1].get_dtype() or views[0].get_shape() != views[1].get_shape():
            return False
        contents = [file.get_tensor(key).reshape(-1).view(torch.uint8) for file in (first, second)]
        return torch.equal(*contents)


def _other_weights(folder: Path) -> str:
    """What a folder without safetensors of the usual names holds instead, for the message."""
    variants = sorted(path.name for path in folder.glob("model.*.safetensors*"))
    if variants:
        return (
            f"; {variants[0]} is a variant, which transformers reads only if it is asked for by name: rename the "
            "files, or save the model again with save_pretrained"
        )
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        return "; pickled weights are not read: save the model again with save_pretrained"
    return ""

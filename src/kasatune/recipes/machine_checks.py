"""What a recipe names and must exist on this machine before a run starts: model, rows, decompositions, packages.

`kasatune.recipes.validation` reports these faults with those of the recipe itself.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from kasatune.data.readers.hub import HUB
from kasatune.errors import ModelError
from kasatune.io.model_location import find_adapter_folder, find_model
from kasatune.methods.table import METHODS
from kasatune.recipes.messages import show
from kasatune.recipes.mixture_checks import row_sections
from kasatune.recipes.sections import RecipeSections

Check = Callable[[RecipeSections], Iterator[str]]
Registered = list[tuple[tuple[str, ...], Check]]

TRACKERS = {
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet_ml",
    "dvclive": "dvclive",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}

_QUANTIZATION_PACKAGES = {"nf4": "bitsandbytes", "int8": "bitsandbytes", "torchao-int8": "torchao"}
_READ_LATER = ("model.name", "model.gguf_file", "task.")

INPUT_CHECKS: Registered = []
"""Every check of this module, with the keys that it reads."""


def missing_packages_and_tails(recipe: RecipeSections) -> list[str]:
    """One sentence for each package and decomposition that a recipe names and that is not on this machine.

    The model and the rows are checked by those who read them, which may be at another place than the recipe names.
    """
    checks = [check for places, check in INPUT_CHECKS if not any(place.startswith(_READ_LATER) for place in places)]
    return [sentence for check in checks for sentence in check(recipe)]


def register(checks: Registered, *places: str) -> Callable[[Check], Check]:
    """A decorator that adds a check, which reads these keys, to `checks`."""

    def add(check: Check) -> Check:
        checks.append((places, check))
        return check

    return add


_inputs = partial(register, INPUT_CHECKS)


def own_files(recipe: RecipeSections) -> list[tuple[str, str, str]]:
    """(place of the section, key, file name) of each file of your own data; a data set on the hub is not a file."""
    given = (
        (place, key, getattr(task, key)) for place, task in row_sections(recipe) for key in ("train", "validation")
    )
    return [(place, key, name) for place, key, name in given if isinstance(name, str) and not name.startswith(HUB)]


@_inputs("model.name", "model.gguf_file")
def _model_exists(recipe: RecipeSections) -> Iterator[str]:
    if "\0" in recipe.model.base_name:
        yield f"model.name: {show(recipe.model.base_name)} received; a name holds no NUL character"
        return
    try:
        find_model(recipe.model.base_name)
    except ModelError as error:
        yield str(error)


@_inputs("model.adapter")
def _adapter_exists(recipe: RecipeSections) -> Iterator[str]:
    name = recipe.model.adapter
    if name is not None and not _is(lambda path: find_adapter_folder(path.expanduser()) is not None, name):
        yield (
            f"model.adapter: {show(name)} holds no adapter; give the directory of a finished run or of an adapter "
            f"(relative ones start at {Path.cwd()})"
        )


@_inputs("task.data", "task.name", "task.parts")
def _data_folder_exists(recipe: RecipeSections) -> Iterator[str]:
    for place, task in row_sections(recipe):
        if task.data is not None and not _is(Path.is_dir, task.data):
            what = "is a file, not a folder" if _is(Path.is_file, task.data) else "no such folder"
            yield f"{place}.data: {show(task.data)}: {what}; check the path (relative ones start at {Path.cwd()})"


@_inputs("task.train", "task.validation", "task.parts")
def _data_files_exist(recipe: RecipeSections) -> Iterator[str]:
    for place, key, name in own_files(recipe):
        if not _is(Path.is_file, name):
            what = "is a folder, not a file" if _is(Path.is_dir, name) else "no such file"
            yield f"{place}.{key}: {show(name)}: {what}; check the path (relative ones start at {Path.cwd()})"


@_inputs("method.tails", "method.name", "method.r", "method.convention")
def _tails_fit(recipe: RecipeSections) -> Iterator[str]:
    method = recipe.method
    info = METHODS.get(method.name)
    if method.tails is None or info is None or "tails" not in info.uses:
        return
    index = Path(method.tails) / "index.json"
    if not _is(Path.is_file, str(index)):
        yield (
            f"method.tails: {show(method.tails)} received; not a directory that `kasatune decompose` finished;"
            f" check the path (relative ones start at {Path.cwd()})"
        )
        return
    try:
        header = json.loads(index.read_text(encoding="utf-8"))
        rank, convention = int(header["rank"]), str(header["convention"])
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


@_inputs("model.quantization")
def _quantizer_is_installed(recipe: RecipeSections) -> Iterator[str]:
    kind = recipe.model.quantization
    package = _QUANTIZATION_PACKAGES.get(kind)
    if package and importlib.util.find_spec(package) is None:
        yield f"model.quantization: {show(kind)} needs {package}, which is not installed: pip install 'kasatune[quant]'"


@_inputs("training.report_to")
def _trackers_are_installed(recipe: RecipeSections) -> Iterator[str]:
    for tracker in recipe.training.report_to:
        package = TRACKERS.get(tracker)
        if package and importlib.util.find_spec(package) is None:
            yield f"training.report_to: {show(tracker)} is not installed: pip install {package}"


def _is(test: Callable[[Path], bool], name: str) -> bool:
    try:
        return test(Path(name))
    except (OSError, ValueError):
        return False

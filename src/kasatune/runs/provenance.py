"""Provenance of a run: hashes of recipe and base model, seed, machine and pinned hub commits, for metrics.json."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from kasatune.data.readers.hub import is_pinned_as
from kasatune.io.environment import processor
from kasatune.io.library_noise import not_deterministic
from kasatune.recipes.schema import PartSection, Recipe, TaskSection, to_yaml


def trace(recipe: Recipe, revision: str | None, fingerprint: str) -> dict[str, Any]:
    """The entries of metrics.json that record how its numbers were computed.

    Args:
        recipe: the recipe in recipe.yaml.
        revision: commit of a base model from the hub; None for a folder.
        fingerprint: fingerprint of the base model.
    """
    return {
        "recipe_sha256": recipe_sha256(recipe),
        "seed": recipe.training.seed,
        "model": {"name": recipe.model.base_name, "revision": revision, "fingerprint": fingerprint},
        "machine": machine(),
        "deterministic": reproducibility_statement(),
    }


def recipe_sha256(recipe: Recipe) -> str:
    """SHA-256 of a recipe with all defaults filled in; `output` is excluded, because a run may be moved."""
    return hashlib.sha256(to_yaml(recipe.model_copy(update={"output": "run"})).encode("utf-8")).hexdigest()


def machine() -> dict[str, Any]:
    """Hardware that results may depend on: system, processor, threads, accelerator and number of processes."""
    accelerator = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def reproducibility_statement() -> str:
    """A statement of what a repeated run reproduces bit for bit, and what it does not."""
    where = "GPU" if torch.cuda.is_available() else "processor"
    exceptions = ", ".join(not_deterministic()) or "none"
    return (
        "Deterministic algorithms were requested: repeated with the same software, threads and kind of "
        f"{where}, the run is the same bit for bit, except for operations that it warned of ({exceptions}). "
        f"Another {where}, or another number of threads or processes, changes the last digits."
    )


def pinned(
    recipe: Recipe,
    revision: str | None,
    pins: Mapping[str, str],
    part_pins: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> Recipe:
    """`recipe` with its model and data pinned to the hub commits that were read.

    Args:
        recipe: recipe of a run.
        revision: commit of its model; None for a folder.
        pins: pinned values of keys of its `task` section; see `TaskData`.
        part_pins: the same for each part of a mixture, by its name.
    """
    task = recipe.task.model_copy(update=dict(pins))
    if part_pins and task.parts is not None:
        parts = [part.model_copy(update=dict(part_pins.get(part.part_name, {}))) for part in task.parts]
        task = task.model_copy(update={"parts": parts})
    sections = {
        "model": recipe.model if revision is None else recipe.model.model_copy(update={"revision": revision}),
        "task": task,
    }
    return recipe.model_copy(update=sections)


def pinned_as_started(recipe: Recipe, out: Path) -> Recipe:
    """`recipe`, pinned to the hub commits and the precision with which the run in `out` was started."""
    from kasatune.io.run_layout import RECIPE
    from kasatune.runs.directory import read_recipe

    if not (out / RECIPE).is_file():
        return recipe
    started = read_recipe(out)
    if recipe.training.precision == "auto":
        training = recipe.training.model_copy(update={"precision": started.training.precision})
        recipe = recipe.model_copy(update={"training": training})
    revision = started.model.revision if recipe.model.revision is None else None
    started_parts = {part.part_name: part for part in started.task.parts or ()}
    part_pins = {
        part.part_name: _pins(part, started_parts[part.part_name])
        for part in recipe.task.parts or ()
        if part.part_name in started_parts
    }
    return pinned(recipe, revision, _pins(recipe.task, started.task), part_pins)


def _pins(task: TaskSection | PartSection, started: TaskSection | PartSection) -> dict[str, str]:
    """The keys of `task` that the run was started with in a pinned form."""
    pins = {
        key: getattr(started, key)
        for key in ("train", "validation")
        if is_pinned_as(getattr(task, key), getattr(started, key))
    }
    if task.revision is None and started.revision is not None:
        pins["revision"] = started.revision
    return pins

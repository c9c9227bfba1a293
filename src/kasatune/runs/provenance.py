"""Where the numbers of a run come from: recipe, rows, model, software, seed and machine, so that each can be traced."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kasatune.data.readers.hub import is_pinned_as
from kasatune.io.environment import processor
from kasatune.io.library_noise import not_deterministic
from kasatune.recipes.schema import Recipe, to_yaml


def trace(recipe: Recipe, revision: str | None, fingerprint: str) -> dict[str, Any]:
    """The entries of metrics.json that say what its numbers were made from.

    Args:
        recipe: as recipe.yaml has it.
        revision: the commit of a base model from the hub.
        fingerprint: of the base model.
    """
    return {
        "recipe_sha256": recipe_sha256(recipe),
        "seed": recipe.training.seed,
        "model": {"name": recipe.model.name, "revision": revision, "fingerprint": fingerprint},
        "machine": machine(),
        "deterministic": deterministic_words(),
    }


def recipe_sha256(recipe: Recipe) -> str:
    """SHA-256 of a recipe with every default filled in, its output left out: a run may be moved."""
    return hashlib.sha256(to_yaml(recipe.model_copy(update={"output": "run"})).encode("utf-8")).hexdigest()


def machine() -> dict[str, Any]:
    """What a number can depend on: system, processor, its threads, accelerator and number of processes."""
    accelerator = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def deterministic_words() -> str:
    """What is the same when a run is made again, and what is not."""
    where = "GPU" if torch.cuda.is_available() else "processor"
    warned_of = ", ".join(not_deterministic()) or "none"
    return (
        "Deterministic algorithms were asked for: made again with the same software, threads and kind of "
        f"{where}, the run is the same bit for bit, but for operations that it warned of ({warned_of}). "
        f"Another {where}, number of threads or of processes changes the last digits."
    )


def pinned(recipe: Recipe, revision: str | None, pins: Mapping[str, str]) -> Recipe:
    """`recipe` with the commits that its model and rows were read from, where it leaves them to the hub.

    Args:
        recipe: of a run.
        revision: the commit of its model; None for a folder.
        pins: keys of its `task` section with what they must be; see `TaskData`.
    """
    sections = {
        "model": recipe.model if revision is None else recipe.model.model_copy(update={"revision": revision}),
        "task": recipe.task.model_copy(update=dict(pins)),
    }
    return recipe.model_copy(update=sections)


def as_begun(recipe: Recipe, out: Path) -> Recipe:
    """`recipe` with the commits that the run in `out` was begun with."""
    from kasatune.io.run_layout import RECIPE
    from kasatune.runs.directory import read_recipe

    if not (out / RECIPE).is_file():
        return recipe
    begun = read_recipe(out)
    task, then = recipe.task, begun.task
    pins = {
        key: getattr(then, key)
        for key in ("train", "validation")
        if is_pinned_as(getattr(task, key), getattr(then, key))
    }
    if task.revision is None and then.revision is not None:
        pins["revision"] = then.revision
    return pinned(recipe, begun.model.revision if recipe.model.revision is None else None, pins)

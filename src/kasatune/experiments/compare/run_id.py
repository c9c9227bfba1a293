"""The ID of a run: a hash of the settings it reads, its rows, its base model and the software versions."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kasatune.adapters.adapter_files import file_sha256
from kasatune.data.tasks.table import TASKS
from kasatune.evaluation.unrelated_text import UnrelatedText
from kasatune.experiments.compare.spec import HELD_OUT, SEARCH_SEED
from kasatune.experiments.compare.variants import keys_read
from kasatune.io.environment import versions
from kasatune.io.model_location import find_model
from kasatune.models.device import find_device
from kasatune.models.load import find_commit
from kasatune.recipes.schema import Recipe
from kasatune.weights.fingerprint import model_files_sha256

_SOFTWARE = ("kasatune", "torch", "transformers", "peft", "accelerate", "tokenizers")
_WITHOUT_EFFECT = ("device", "report_to", "packing")
"""Training settings that change no result; packing does where it is set."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison.

    Attributes:
        id: hash of `identity`; equal runs have equal IDs.
        recipe: the complete recipe.
        search: whether this is a search trial, which sees only training rows and is scored on a held-out part of them.
        identity: everything that determines the result.
        cold: compute decompositions anew so that their time is measured; their values are the same.
        unrelated: the text on which forgetting is measured; None in a search trial.
        untrained: whether the base is scored as it is, without a method.
    """

    id: str
    recipe: Recipe
    search: bool
    identity: dict[str, Any]
    cold: bool = False
    unrelated: UnrelatedText | None = None
    untrained: bool = False


def plan_run(
    recipe: Recipe,
    data_sha256: str,
    *,
    search: bool,
    cold: bool = False,
    unrelated: UnrelatedText | None = None,
) -> PlannedRun:
    """The run of `recipe` on the rows with this SHA-256, measured on the text `unrelated`.

    Files are identified by their content, not their path. Settings that belong to other methods are left out.
    """
    values = recipe.model_dump()
    read = {"name", "options", *keys_read(recipe.method.name)} - {"tails"}
    values["model"].pop("gguf_file", None)  # part of the identity of the model
    model = model_identity(recipe.model.base_name, recipe.model.revision)
    identity = {
        "model": {**values["model"], "name": model, "revision": None},
        "rows": data_sha256,
        "held_out": {"share": HELD_OUT, "seed": SEARCH_SEED} if search else None,
        "task": {
            **{key: values["task"][key] for key in ("name", "max_length")},
            **({"parts": _part_identities(recipe)} if recipe.task.parts else {}),
        },
        "method": {key: value for key, value in values["method"].items() if key in read},
        "training": {key: value for key, value in values["training"].items() if key not in _WITHOUT_EFFECT},
        "device": find_device(recipe.training).type,
        "software": {key: value for key, value in versions().items() if key in _SOFTWARE},
    }
    if unrelated is not None:
        identity["unrelated"] = {"sha256": unrelated.sha256, "tokens": unrelated.tokens}
        if recipe.generation is not None:
            identity["generation"] = values["generation"]
    if TASKS[recipe.task.name].engine == "sft" or recipe.training.packing:
        identity["training"]["packing"] = values["training"]["packing"]
    return PlannedRun(digest(identity), recipe, search, identity, cold, unrelated)


def _part_identities(recipe: Recipe) -> list[dict[str, Any]]:
    """What decides the scores of a mixture's parts besides their rows."""
    return [
        {"name": part.part_name, "task": part.name, "generation": part.generation and part.generation.model_dump()}
        for part in recipe.task.parts or ()
    ]


def plan_base(recipe: Recipe, data_sha256: str) -> PlannedRun:
    """The run that scores the untouched base of `recipe` on the rows with this SHA-256."""
    run = plan_run(recipe, data_sha256, search=False)
    training = {key: run.identity["training"][key] for key in ("precision", "eval_batch_size")}
    identity = {**run.identity, "method": None, "training": training}
    if recipe.generation is not None:
        identity["generation"] = recipe.generation.model_dump()
    return PlannedRun(digest(identity), recipe, False, identity, untrained=True)


def digest(identity: dict[str, Any]) -> str:
    """The ID of the run with this identity."""
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@cache
def model_identity(name: str, revision: str | None = None) -> str:
    """SHA-256 over the files of a base model in a local folder, or of a GGUF file; name and commit on the hub."""
    location = find_model(name)
    if not location.is_local:
        return f"{name}@{find_commit(location, revision)}"
    return file_sha256(location.file) if location.gguf_file else model_files_sha256(Path(location.path))

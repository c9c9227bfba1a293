"""What makes two runs the same: the settings that the run reads, its rows, its base model and the software."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kasatune.experiments.compare.spec import HELD_OUT, SEARCH_SEED
from kasatune.experiments.compare.variants import keys_read
from kasatune.io.environment import versions
from kasatune.models.device import find_device
from kasatune.models.load import find_commit, find_model
from kasatune.recipes.schema import Recipe
from kasatune.weights.fingerprint import model_files_sha256

_SOFTWARE = ("kasatune", "torch", "transformers", "peft", "accelerate", "tokenizers")
_NO_MATTER = ("device", "report_to", "packing")
"""Settings of training that change no result: rows are packed in tasks alone that a comparison refuses."""


@dataclass(frozen=True)
class Job:
    """One run to do.

    Attributes:
        id: of its content; equal jobs have equal ids.
        recipe: what it does.
        search: whether it sees the training rows alone, some of them kept back.
        identity: what `id` is the digest of.
        cold: whether decompositions are to be computed anew, so that their cost is seen; their values are the same.
    """

    id: str
    recipe: Recipe
    search: bool
    identity: dict[str, Any]
    cold: bool = False


def make_job(recipe: Recipe, data_sha256: str, *, search: bool, cold: bool = False) -> Job:
    """The run of `recipe` on the rows with this sum.

    Paths do not count, what they lead to does; nor do settings of other methods.
    """
    values = recipe.model_dump()
    read = {"name", "options", *keys_read(recipe.method.name)} - {"tails"}
    model = model_identity(recipe.model.name, recipe.model.revision)
    identity = {
        "model": {**values["model"], "name": model, "revision": None},
        "rows": data_sha256,
        "held_out": {"share": HELD_OUT, "seed": SEARCH_SEED} if search else None,
        "task": {key: values["task"][key] for key in ("name", "max_length")},
        "method": {key: value for key, value in values["method"].items() if key in read},
        "training": {key: value for key, value in values["training"].items() if key not in _NO_MATTER},
        "device": find_device(recipe.training).type,
        "software": {key: value for key, value in versions().items() if key in _SOFTWARE},
    }
    return Job(digest(identity), recipe, search, identity, cold)


def digest(identity: dict[str, Any]) -> str:
    """The name of the run that has this identity."""
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@cache
def model_identity(name: str, revision: str | None = None) -> str:
    """SHA-256 over the files of a base model in a folder; name and commit of a model on the hub."""
    folder = Path(find_model(name))
    return model_files_sha256(folder) if folder.is_dir() else f"{name}@{find_commit(name, revision)}"

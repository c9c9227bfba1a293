"""Checks of a run before its model is loaded, the same ones for `kasatune plan` and for training.

In order of their cost: packages, device, engine and the Trainer's arguments (`check_setup`); the files of a local model
(`check_files`); its tokenizer, and the first rows through it (`check_rows`). `kasatune.training.plan` then attaches the
method to the model without weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import TrainingArguments

from kasatune import methods
from kasatune.data.tasks.dataset import TaskData
from kasatune.data.tasks.table import TASKS
from kasatune.distributed.fsdp import deepspeed_requested, sharding_requested
from kasatune.errors import RecipeError
from kasatune.evaluation.task_model import TaskModel
from kasatune.models.device import find_device
from kasatune.models.load import Base, Pretrained, load_tokenizer
from kasatune.recipes.machine_checks import missing_packages_and_tails
from kasatune.training.deepspeed_config import require_suitable
from kasatune.training.engines import load_engine
from kasatune.training.engines.engine import Engine
from kasatune.weights.checkpoint_files import weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kasatune.recipes.schema import Recipe

ROWS_CHECKED = 100
"""Rows of each split that `check_rows` tokenizes."""


@dataclass(frozen=True)
class Setup:
    """What a recipe asks of this machine.

    Attributes:
        device: device of the run.
        engine: the engine that trains it.
        arguments: arguments of the engine's Trainer.
    """

    device: torch.device
    engine: Engine
    arguments: TrainingArguments


def check_setup(recipe: Recipe, checkpoints: Path) -> Setup:
    """Check what a recipe needs of this machine besides its model and its rows.

    Args:
        recipe: a validated recipe.
        checkpoints: the folder for checkpoints, which is not made here.

    Raises:
        RecipeError: a package, the decomposition or the device is not here, or the Trainer rejects a setting.
        MissingExtraError: the library of the task's engine is not installed.
    """
    missing = missing_packages_and_tails(recipe)
    if missing:
        raise RecipeError(missing)
    if sharding_requested() and deepspeed_requested():
        require_suitable(recipe, methods.load(recipe.method.name))
    device = find_device(recipe.training)
    engine = load_engine(TASKS[recipe.task.name].engine)
    return Setup(device, engine, engine.training_arguments(recipe, checkpoints, device))


def has_no_weights(pretrained: Pretrained) -> bool:
    """Whether a model is a local folder with a configuration and no weights of any kind, which suffices for a plan."""
    location = pretrained.location
    if not location.is_local or location.gguf_file is not None:
        return False
    folder = Path(location.path)
    return not any(any(folder.glob(pattern)) for pattern in ("*.safetensors*", "*.bin*", "*.gguf"))


def check_files(pretrained: Pretrained, model: PreTrainedModel, recipe: Recipe) -> Base | None:
    """Check the weight files and the tokenizer of a model in a folder; nothing is downloaded.

    Args:
        pretrained: the recipe's model.
        model: the model on the meta device; gets the tokenizer's padding token.
        recipe: a validated recipe.

    Returns:
        The model with its tokenizer; None for a model on the hub.

    Raises:
        ModelError: there are no weights, or the tokenizer is damaged, has no EOS token, or is too short for
            `task.max_length`.
    """
    location = pretrained.location
    if not location.is_local:
        return None
    if location.gguf_file is None:
        weight_files(Path(location.path))
    kind = TASKS[recipe.task.name].kind
    return Base(model, load_tokenizer(pretrained, model, kind=kind, max_length=recipe.task.max_length), ())


def check_rows(recipe: Recipe, base: Base, data: TaskData) -> None:
    """Tokenize the first rows of each split as training does, which tries the chat template.

    Args:
        recipe: a validated recipe.
        base: the result of `check_files`.
        data: the rows.

    Raises:
        ModelError: the chat template rejects a row, or a token has no embedding.
        DataError: a split is empty.
    """
    splits: Mapping[str, object] = {split: rows.sample(ROWS_CHECKED) for split, rows in data.splits.items()}
    head = replace(data, splits=splits)
    task_model = TaskModel(recipe, base, methods.load(recipe.method.name), base.model)
    for split in ("train", "validation"):
        task_model.encode(head, split)

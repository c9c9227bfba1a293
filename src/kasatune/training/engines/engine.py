"""The protocol of a training engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from kasatune.data.tokenize import Examples

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainingArguments

    from kasatune.evaluation.task_model import TaskModel
    from kasatune.recipes.schema import Recipe
    from kasatune.training.engines.run_trainer import RunHooks, RunTrainer


class Engine(Protocol):
    """Builds the trainer of a run: transformers' Trainer, or a subclass of it from another library.

    A new engine is a module with an `ENGINE`, a row in `ENGINES`, and the tasks that name it in `TaskInfo.engine`. Its
    trainer inherits from `RunTrainer` first and from the library's Trainer second.
    """

    def training_arguments(self, recipe: Recipe, checkpoints: Path, device: torch.device) -> TrainingArguments:
        """The recipe's section `training` as the arguments of the library's Trainer.

        Args:
            recipe: recipe of the run.
            checkpoints: the folder for checkpoints.
            device: device of the run.

        Raises:
            RecipeError: a setting is not supported on this machine or by the engine.
        """
        ...

    def check_model(self, model: nn.Module) -> None:
        """Reject a model that the engine cannot train.

        Args:
            model: with the recipe's method attached.

        Raises:
            RecipeError: the recipe adapts a layer that the engine bypasses.
        """
        ...

    def make_trainer(
        self,
        task_model: TaskModel,
        examples: Mapping[str, Examples],
        arguments: TrainingArguments,
        hooks: RunHooks,
        callbacks: Sequence[TrainerCallback],
    ) -> RunTrainer:
        """The trainer of a run.

        Args:
            task_model: the model with its method, tokenizer and collator.
            examples: tokenized rows of "train" and "validation".
            arguments: returned by `training_arguments`.
            hooks: functions and settings of the run that the trainer uses.
            callbacks: callbacks of the Trainer, in this order.
        """
        ...

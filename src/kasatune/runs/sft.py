"""TRL's SFTTrainer, told what a recipe says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kasatune.errors import MissingExtraError
from kasatune.runs.examples import Examples
from kasatune.runs.recipe import Recipe
from kasatune.runs.trainer import RunSteps, training_arguments

try:
    # TRL tells its makers of every trainer that is built; a run tells nobody.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer
except ImportError as fault:
    raise MissingExtraError("the task instruction", "sft") from fault


class SftRunTrainer(RunSteps, SFTTrainer):  # type: ignore[misc]
    """The Trainer of a run on conversations: TRL's own loss and packing, with the steps of every run."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None for a checkpoint: a run writes its own cards once it is done."""

    def _send_telemetry(self) -> None:
        """Nothing is told, whatever was imported before the environment said so."""


def make_sft_trainer(recipe: Recipe, work: Path, examples: dict[str, Examples], **further: Any) -> SftRunTrainer:
    """The trainer of `recipe`.

    With `training.packing`, rows are put one after another until `task.max_length` is full, none is cut for it, and
    none sees another; an example of `training.batch_size` is then such a packed row.

    Args:
        recipe: of the task instruction.
        work: where checkpoints go.
        examples: tokenized rows by split.
        further: arguments of `RunSteps`, and of SFTTrainer.
    """
    section = recipe.training
    arguments = training_arguments(
        section,
        work,
        SFTConfig,
        packing=section.packing,
        eval_packing=False,
        max_length=recipe.task.max_length,
        gradient_checkpointing=section.gradient_checkpointing,
    )
    train, validation = (_dataset(examples[split]) for split in ("train", "validation"))
    return SftRunTrainer(args=arguments, train_dataset=train, eval_dataset=validation, **further)


def _dataset(examples: Examples) -> Dataset:
    rows = examples.rows
    return Dataset.from_dict({name: [row[name] for row in rows] for name in ("input_ids", "labels")})

"""TRL's SFTTrainer, told what a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel

from kasatune.errors import MissingExtraError
from kasatune.runs.examples import Examples
from kasatune.runs.recipe import Recipe
from kasatune.runs.trainer import RunSteps, training_arguments

try:
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer
except ImportError as fault:
    raise MissingExtraError("the task instruction", "sft") from fault


class SftRunTrainer(RunSteps, SFTTrainer):  # type: ignore[misc]
    """The Trainer of a run on conversations: TRL's own loss and packing, with the steps of every run.

    TRL puts a forward of its own on the model, which a copy of the model would share with it; after training the
    model's own is back.
    """

    def __init__(self, *, model: Any, **further: Any) -> None:
        self._bare = model.get_base_model() if isinstance(model, PeftModel) else model
        self._forward = vars(self._bare).get("forward")
        super().__init__(model=model, **further)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The base's training."""
        try:
            return super().train(*args, **kwargs)
        finally:
            vars(self._bare).pop("forward", None)
            if self._forward is not None:
                self._bare.forward = self._forward

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None for a checkpoint: a run writes its own cards once it is done."""

    def _send_telemetry(self) -> None:
        """Nothing: TRL would tell its makers of every trainer that is built."""


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

"""TRL's SFTTrainer, told what a recipe says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from kasatune.data.tokenize import Examples
from kasatune.errors import MissingExtraError, RecipeError
from kasatune.evaluation.causal_loss import learnt_tokens
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.recipes.schema import Recipe
from kasatune.training.trainer import FILLER, RunSteps, training_arguments

try:
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer
except ImportError as fault:
    raise MissingExtraError("the task instruction", "sft") from fault


_TOKENS_OF_ROWS = "tokens_of_rows"


class SftRunTrainer(RunSteps, SFTTrainer):  # type: ignore[misc]
    """The Trainer of a run on conversations: TRL's own loss and packing, with the steps of every run.

    TRL puts a forward of its own on the model, which a copy of the model would share with it; after training the
    model's own is back. It lays the rows of a packed piece end to end; where processes share a step, each piece says
    how long its rows are, so that those which only fill it can be told. On a quantized base it rounds what is trained
    to 16 bits, which is undone: small steps would be lost.
    """

    def __init__(self, *, model: Any, args: SFTConfig, **further: Any) -> None:
        self._bare = model.get_base_model() if isinstance(model, PeftModel) else model
        self._forward = vars(self._bare).get("forward")
        before = [(parameter, parameter.data) for parameter in trainable(model).values()]
        super().__init__(model=model, args=args, **further)
        for parameter, data in before:
            if parameter.dtype != data.dtype:
                parameter.data = data.to(parameter.device)
        if args.packing and args.world_size > 1:
            self.data_collator = _with_lengths(self.data_collator)

    def _keep_rows(self, batch: dict[str, Any], number: int) -> int:
        lengths = batch.pop(_TOKENS_OF_ROWS, None)
        if lengths is None:
            return super()._keep_rows(batch, number)
        labels, end = batch["labels"], int(lengths[:number].sum())
        labels[:, end:] = FILLER
        return learnt_tokens(labels)

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


def _with_lengths(collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        return {**collate(rows), _TOKENS_OF_ROWS: lengths}

    return collated


def require_plain_output(model: nn.Module) -> None:
    """TRL multiplies by the weight of the output layer itself, past whatever is put around it.

    Raises:
        RecipeError: the output layer is adapted.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if isinstance(base.get_output_embeddings(), BaseTunerLayer):
        raise RecipeError(
            [
                "method.target_modules: the model's output layer is among the targets; the task instruction trains "
                "past an adapter there; name other layers, or all-linear, which leaves it out"
            ]
        )


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
    arguments: Any = training_arguments(
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

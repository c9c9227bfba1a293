"""The engine "trainer": transformers' Trainer, with the loss of classification, regression and prompt completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer, TrainerCallback, TrainingArguments

from kasatune.data.packing import PackedCollator, pack
from kasatune.data.tokenize import Examples
from kasatune.evaluation.causal_loss import learnt_tokens, predicting, token_losses
from kasatune.evaluation.logits_to_keep import logits_to_keep
from kasatune.training.engines.arguments import training_arguments
from kasatune.training.engines.run_trainer import IGNORED_LABEL, RunHooks, RunTrainer

if TYPE_CHECKING:
    from kasatune.evaluation.task_model import TaskModel
    from kasatune.recipes.schema import Recipe


class MeanLossTrainer(RunTrainer, Trainer):
    """transformers' Trainer with `mean_loss`: the loss of a step is the mean over its examples.

    A language model computes logits only where a labelled token is predicted.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(compute_loss_func=mean_loss, **arguments)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **further: Any) -> Any:
        """See `RunTrainer`."""
        labels = inputs["labels"]
        if labels.ndim != 2:
            return super().compute_loss(model, inputs, *arguments, **further)
        with logits_to_keep(self.run_model, predicting(labels)):
            return super().compute_loss(model, inputs, *arguments, **further)


def mean_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """(1/N) sum_i loss_i over the examples of a micro-batch, N the number of examples of the optimizer step.

    loss_i is the cross-entropy for integer labels and the squared error for real ones, computed in float32. If labels
    are (rows, tokens), an example is a learnt token, predicted from the tokens before it. Padding rows, labelled -100
    or NaN, do not count. The logits of a language model may be those of all positions or of the predicting ones alone
    (`token_losses`).
    """
    if labels.ndim == 2:
        return token_losses(outputs.logits, labels) / (
            learnt_tokens(labels) if num_items_in_batch is None else num_items_in_batch
        )
    logits = outputs.logits.float()
    if labels.is_floating_point():
        predicted = logits.squeeze(-1)
        target = torch.where(labels.isnan(), predicted.detach(), labels.float())
        loss = functional.mse_loss(predicted, target, reduction="sum")
    else:
        loss = functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED_LABEL)
    return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)


class TrainerEngine:
    """transformers' Trainer; see `Engine`."""

    def training_arguments(self, recipe: Recipe, checkpoints: Path, device: torch.device) -> TrainingArguments:
        """See `Engine`."""
        return training_arguments(recipe.training, checkpoints, device)

    def check_model(self, model: nn.Module) -> None:
        """Accept every model."""

    def make_trainer(
        self,
        task_model: TaskModel,
        examples: Mapping[str, Examples],
        arguments: TrainingArguments,
        hooks: RunHooks,
        callbacks: Sequence[TrainerCallback],
    ) -> RunTrainer:
        """See `Engine`."""
        recipe, rows, collate = task_model.recipe, examples["train"], task_model.collate
        if recipe.training.packing:
            rows, collate = pack(rows, recipe.task.max_length), PackedCollator(task_model.base.tokenizer)
        return MeanLossTrainer(
            hooks=hooks,
            callbacks=callbacks,
            model=task_model.model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=examples["validation"],
            data_collator=collate,
        )


ENGINE = TrainerEngine()

"""What the engines on TRL's trainers share: making the trainer, and refusing an adapted output layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from kasatune.data.tokenize import Examples
from kasatune.errors import RecipeError
from kasatune.training.engines.run_trainer import RunHooks, RunTrainer

if TYPE_CHECKING:
    from kasatune.evaluation.task_model import TaskModel


class TrlEngine:
    """Base of the engines that train with one of TRL's trainers.

    Attributes:
        trainer_class: the trainer for a run.
        dataset: makes its data set of tokenized examples; a static method.
    """

    trainer_class: type[Any]
    dataset: Callable[[Examples], Any]

    def make_trainer(
        self,
        task_model: TaskModel,
        examples: Mapping[str, Examples],
        arguments: TrainingArguments,
        hooks: RunHooks,
        callbacks: Sequence[TrainerCallback],
    ) -> RunTrainer:
        """See `Engine`."""
        return self.trainer_class(
            hooks=hooks,
            callbacks=callbacks,
            model=task_model.model,
            args=arguments,
            train_dataset=self.dataset(examples["train"]),
            eval_dataset=self.dataset(examples["validation"]),
            processing_class=task_model.base.tokenizer,
        )


def require_plain_output_layer(model: nn.Module, task: str) -> None:
    """Reject an adapted output layer: TRL multiplies by its weight directly, which bypasses an adapter.

    Raises:
        RecipeError: the output layer is adapted.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if isinstance(base.get_output_embeddings(), BaseTunerLayer):
        raise RecipeError(
            [
                f"method.target_modules: the model's output layer is among the targets, but the task {task} would "
                "bypass its adapter; name other layers, or all-linear, which excludes it"
            ]
        )

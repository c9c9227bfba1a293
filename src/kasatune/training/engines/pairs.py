"""Mixins for TRL's trainers on pairs of answers, DPOTrainer and RewardTrainer: a step is the mean over its pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import Trainer

from kasatune.distributed.fsdp import sharding_requested
from kasatune.errors import RecipeError
from kasatune.training.engines.run_trainer import RunTrainer

if TYPE_CHECKING:
    from kasatune.recipes.schema import Recipe

_PAIRS = "pairs"
"""Key of a micro-batch with the number of its pairs that count, where some repeat earlier ones."""


class PairMeanLoss(Trainer if TYPE_CHECKING else object):
    """Mixin between `PairRunTrainer` and TRL's trainer: the loss of a step is the mean over its pairs.

    TRL takes the mean of each micro-batch and the mean of those, in which a pair of a smaller micro-batch counts more.
    """

    loss_is_scaled_for_ga = True

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """(n / N) times the mean loss of the n pairs of a micro-batch, N the pairs of the optimizer step."""
        counted = inputs.pop(_PAIRS, None)
        result = super().compute_loss(model, inputs, return_outputs)
        if num_items_in_batch is None:
            return result
        pairs = len(inputs["input_ids"]) // 2
        # The processes' gradients are averaged, and N counts the pairs of all processes.
        scale = pairs * self.accelerator.num_processes / num_items_in_batch if counted is None or counted else 0.0
        return (result[0] * scale, result[1]) if isinstance(result, tuple) else result * scale


class PairRunTrainer(RunTrainer):
    """Mixin that comes first, before `PairMeanLoss` and TRL's trainer, with rows that are tokenized already.

    Trained parameters on a quantized base stay in float32, which TRL would round to 16 bits. TRL's telemetry and model
    card are switched off.
    """

    def count_examples(self, batch: dict[str, Any]) -> int:
        """The number of pairs of a micro-batch."""
        return len(batch["input_ids"]) // 2

    def mask_repeated_rows(self, batch: dict[str, Any], number: int) -> int:
        """See `RunTrainer`; a repeated pair is given two equal answers, which have the margin 0 and no gradient."""
        pairs = len(batch["input_ids"]) // 2
        number = min(number, pairs)
        if number < pairs:
            batch[_PAIRS] = number
            for name in ("input_ids", "attention_mask", "completion_mask"):
                if name in batch:
                    batch[name][pairs + number :] = batch[name][number:pairs]
            if "completion_mask" in batch:  # losses of single answers have no gradient without answer tokens
                batch["completion_mask"][number:pairs] = batch["completion_mask"][pairs + number :] = 0
            for name in ("ref_chosen_logps", "ref_rejected_logps"):
                if name in batch:
                    batch[name][number:] = 0.0
        return number

    def items_of_loss(self, inputs: dict[str, Any]) -> int:
        """See `ForwardLossTrainer`."""
        return inputs.get(_PAIRS, len(inputs["input_ids"]) // 2)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: a finished run writes the model card."""

    def _send_telemetry(self) -> None:
        """Do nothing. Private in TRL; the public switch is an environment variable that is read at import."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """The rows as they are. Private in TRL, which would render and tokenize them."""
        return dataset


def keep_dtypes(before: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Restore the data of parameters whose dtype has changed; `before` holds each with its earlier data."""
    for parameter, data in before:
        if parameter.dtype != data.dtype:
            parameter.data = data.to(parameter.device)


def require_unsharded(recipe: Recipe) -> None:
    """Reject FSDP and DeepSpeed ZeRO-3, with which the engines of pairs are not tested.

    Raises:
        RecipeError: the launcher asks for a sharded model.
    """
    if sharding_requested():
        raise RecipeError(
            [f"task.name: {recipe.task.name} does not run with a sharded model (FSDP, ZeRO-3); use torchrun alone"]
        )

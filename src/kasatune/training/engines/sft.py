"""The engine "sft": TRL's SFTTrainer, for conversations and packed rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import nn

from kasatune.data.tokenize import Examples
from kasatune.errors import MissingExtraError
from kasatune.evaluation.causal_loss import learnt_tokens, predicting
from kasatune.evaluation.logits_to_keep import logits_to_keep
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.training.engines.arguments import training_arguments
from kasatune.training.engines.run_trainer import IGNORED_LABEL, RunTrainer
from kasatune.training.engines.trainer import mean_loss
from kasatune.training.engines.trl_engine import TrlEngine, require_plain_output_layer

try:
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer
except ImportError as fault:
    raise MissingExtraError("the task instruction", "sft") from fault

if TYPE_CHECKING:
    from kasatune.recipes.schema import Recipe

_ROW_LENGTHS = "row_lengths"


class _LearntLogitsTrainer(SFTTrainer):
    """SFTTrainer with TRL's loss, computed from the logits of the learnt tokens alone on every device.

    TRL computes those of all tokens on a CPU, and computes the logits again in the backward pass.
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the learnt tokens of the optimizer step; for a model with a router's loss, TRL's own."""
        if self.aux_loss_enabled:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        bare: Any = self.model
        with logits_to_keep(bare, predicting(labels)):
            outputs = model(**inputs, use_cache=False)
        loss = mean_loss(outputs, labels, num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


class SftRunTrainer(RunTrainer, _LearntLogitsTrainer):
    """TRL's SFTTrainer for a run; packing is TRL's.

    Reverts or adjusts three things that TRL does:

    - it replaces the forward of the model, which would also affect copies of the model: restored after training;
    - it rounds the trained parameters on a quantized base to 16 bits, in which small steps are lost: reverted;
    - it concatenates the rows of a packed batch: with several processes a batch also carries the lengths of its rows,
      so that repeated ones can be masked.

    TRL's telemetry is switched off.
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
            self.data_collator = _with_row_lengths(self.data_collator)

    def mask_repeated_rows(self, batch: dict[str, Any], number: int) -> int:
        """See `RunTrainer`; the rows of a packed batch are located by their lengths."""
        lengths = batch.pop(_ROW_LENGTHS, None)
        if lengths is None:
            return super().mask_repeated_rows(batch, number)
        labels, end = batch["labels"], int(lengths[:number].sum())
        labels[:, end:] = IGNORED_LABEL
        return learnt_tokens(labels)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the model's original forward is restored afterwards."""
        try:
            return super().train(*args, **kwargs)
        finally:
            vars(self._bare).pop("forward", None)
            if self._forward is not None:
                self._bare.forward = self._forward

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: a finished run writes the model card."""

    def _send_telemetry(self) -> None:
        """Do nothing. Private in TRL; the public switch is an environment variable that is read at import."""


def _with_row_lengths(collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def collated(rows: list[dict[str, Any]]) -> dict[str, Any]:
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        return {**collate(rows), _ROW_LENGTHS: lengths}

    return collated


def _dataset(examples: Examples) -> Dataset:
    rows = examples.rows
    return Dataset.from_dict({name: [row[name] for row in rows] for name in ("input_ids", "labels")})


class SftEngine(TrlEngine):
    """TRL's SFTTrainer; see `Engine`.

    With `training.packing`, rows are concatenated up to `task.max_length`; no row is truncated for it, and none
    attends to another. `training.batch_size` then counts packed rows.
    """

    trainer_class = SftRunTrainer
    dataset = staticmethod(_dataset)

    def training_arguments(self, recipe: Recipe, checkpoints: Path, device: torch.device) -> SFTConfig:
        """See `Engine`."""
        section = recipe.training
        return training_arguments(
            section,
            checkpoints,
            device,
            SFTConfig,
            packing=section.packing,
            eval_packing=False,
            max_length=recipe.task.max_length,
            gradient_checkpointing=section.gradient_checkpointing,
        )

    def check_model(self, model: nn.Module) -> None:
        """Reject an adapted output layer: TRL multiplies by its weight directly, which bypasses an adapter.

        Raises:
            RecipeError: the output layer is adapted.
        """
        require_plain_output_layer(model, "instruction")


ENGINE = SftEngine()

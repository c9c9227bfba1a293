from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig
from torch import nn
from transformers import TrainerCallback

from kasatune.errors import ModelError
from kasatune.methods.bottleneck.layer import BottleneckLayer
from kasatune.methods.bottleneck.method import BottleneckMethod
from kasatune.methods.shared.method import MethodSettings, TaskKind
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments


class AdapterDrop(BottleneckMethod):
    """Pfeiffer adapters in the blocks n, ..., L - 1 only; with `sampled`, n ~ U{0, ..., L - 1} at each training step.

    `drop` is n after training. With `sampled: false` ("specialized") it is also n during training, and the first n
    blocks have no adapter at all. Trained parameters: (L - n)(2 d r + r + d), with n = 0 if sampled. RoBERTa-base with
    r = 48: 894,528, and 298,176 with n = 8. The 0.9M and 0.3M of the LoRA paper's table 2 fit these numbers, but the
    paper does not state which of several readings it means.

    Not specified by the source, chosen here: one n for all micro-batches of an optimizer step; W_up = 0 at the start.

    Source: Rueckle et al., arXiv 2010.11918, section 4; computed by kasatune.
    """

    info = METHODS["adapterdrop"]
    kind = "pfeiffer"

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """See `BottleneckMethod.config`."""
        field = "skip_blocks" if settings.options["sampled"] else "first_block"
        return super().config(settings, targets, {**common, field: settings.options["drop"]})

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`.

        Raises:
            ModelError: see `Method.attach`; also if no block would keep its adapter.
        """
        wrapped = super().attach(model, settings, kind, new_modules)
        blocks = _blocks(wrapped)
        if settings.options["drop"] >= blocks:
            raise ModelError(
                f"method.options.drop: {settings.options['drop']} received, and {type(model).__name__} has {blocks} "
                f"blocks; give at most {blocks - 1}"
            )
        return wrapped

    def callbacks(self, model: nn.Module, settings: MethodSettings) -> list[TrainerCallback]:
        """Draw n at every step, if `sampled`."""
        return [DrawBlocks(model)] if settings.options["sampled"] else []


class DrawBlocks(TrainerCallback):
    """Draws n ~ U{0, ..., L - 1} for each optimizer step, from the recipe's seed and the step number only."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = _layers(model)
        self._blocks = _blocks(model)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop the adapters of the first n blocks."""
        draw = torch.Generator().manual_seed(args.seed * 1_000_003 + state.global_step)
        dropped = int(torch.randint(self._blocks, (), generator=draw))
        for layer in self._layers:
            layer.skip_in_training = dropped

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Use all adapters again between steps."""
        for layer in self._layers:
            layer.skip_in_training = 0


def _layers(model: nn.Module) -> list[BottleneckLayer]:
    return [module for module in model.modules() if isinstance(module, BottleneckLayer)]


def _blocks(model: nn.Module) -> int:
    return 1 + max(layer.block or 0 for layer in _layers(model))


METHOD = AdapterDrop()

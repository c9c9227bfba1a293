from __future__ import annotations

from typing import TYPE_CHECKING, Any

import peft
import torch
from peft import LoraConfig, PeftConfig
from torch import nn
from transformers import TrainerCallback

from kasatune.methods.adapter import AdapterMethod
from kasatune.methods.base import MethodSettings
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class PeftKasa(AdapterMethod):
    """y = W_world x + s B diag(sigma) A drop(x), as PEFT computes it: a rival of the KaSA of this package.

    PEFT truncates the base in place and leaves it to the user to add the penalty; here its gradient is added once per
    optimizer step, so that its two coefficients act as they were meant to.

    Source: Wang et al., arXiv 2412.06071; computed by PEFT.
    """

    info = METHODS["peft-kasa"]

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """PEFT's LoraConfig with its `kasa_config`."""
        return LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]
            lora_dropout=settings.dropout,
            use_rslora=settings.use_rslora,
            target_modules=targets,
            kasa_config=peft.KasaConfig(beta=settings.beta, gamma=settings.gamma),
            **common,
        )

    def callbacks(self, model: nn.Module, settings: MethodSettings) -> list[TrainerCallback]:
        """The one that adds the penalty's gradient."""
        return [_AddPenaltyGradient(model)]


class _AddPenaltyGradient(TrainerCallback):
    """grad += d penalty / d parameter, just before every optimizer step, after any clipping and unscaling."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parameters = [p for n, p in model.named_parameters() if p.requires_grad and "lora_" in n]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        optimizer = kwargs["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)
        self._handle = optimizer.register_step_pre_hook(self._add)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._handle.remove()

    def _add(self, *_: Any) -> None:
        penalty = self._model.base_model._get_kasa_loss()  # type: ignore[union-attr,operator]
        # Not backward(): under DistributedDataParallel that would start another reduction.
        gradients = torch.autograd.grad(penalty, self._parameters, allow_unused=True)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


METHOD = PeftKasa()

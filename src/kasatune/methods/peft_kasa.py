from __future__ import annotations

from typing import Any

import peft
import torch
from peft import LoraConfig, LoraModel, PeftConfig
from torch import Tensor, nn

from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.peft_adapter import AdapterMethod, as_peft_model
from kasatune.methods.table import METHODS


class PeftKasa(AdapterMethod):
    """y = W_world x + s B diag(sigma) A drop(x), as PEFT computes it, to compare with the KaSA of this package.

    PEFT truncates the base in place and leaves adding the penalty to the user. Here the gradient of the penalty is
    added once per optimizer step, so that beta and gamma have their intended weight.

    Source: Wang et al., arXiv 2412.06071; computed by PEFT.
    """

    info = METHODS["peft-kasa"]

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """PEFT's LoraConfig with its `kasa_config`."""
        return LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType] - PEFT computes with floats too
            lora_dropout=settings.dropout,
            use_rslora=settings.use_rslora,
            target_modules=targets,
            kasa_config=peft.KasaConfig(beta=settings.beta, gamma=settings.gamma),
            **common,
        )

    def step_penalty(self, model: nn.Module, settings: MethodSettings) -> Tensor:
        """L = beta sum(sigma^2) + gamma (||A A^T - I||_F + ||B^T B - I||_F), summed over the layers."""
        tuner = as_peft_model(model).base_model
        assert isinstance(tuner, LoraModel)
        return torch.as_tensor(tuner._get_kasa_loss())


METHOD = PeftKasa()

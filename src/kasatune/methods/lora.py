from __future__ import annotations

from typing import Any

from peft import LoraConfig, PeftConfig

from kasatune.methods.adapter import AdapterMethod
from kasatune.methods.base import MethodSettings
from kasatune.methods.table import METHODS


class Lora(AdapterMethod):
    """y = W x + s B A drop(x), s = alpha / r (alpha / sqrt(r) with rsLoRA); A kaiming, B = 0.

    Source: Hu et al., arXiv 2106.09685; computed by PEFT.
    """

    info = METHODS["lora"]

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """PEFT's LoraConfig."""
        return LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]
            lora_dropout=settings.dropout,
            use_rslora=settings.use_rslora,
            target_modules=targets,
            **common,
        )


METHOD = Lora()

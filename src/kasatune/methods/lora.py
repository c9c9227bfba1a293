from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.peft_adapter import AdapterMethod
from kasatune.methods.table import METHODS

ADAPTER_NAME = "default"


class Lora(AdapterMethod):
    """y = W x + s B A drop(x), s = alpha / r (alpha / sqrt(r) with `use_rslora`); A starts Kaiming uniform, B at 0.

    Source: Hu et al., arXiv 2106.09685; computed by PEFT.
    """

    info = METHODS["lora"]

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """PEFT's LoraConfig."""
        return LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType] - PEFT computes with floats too
            lora_dropout=settings.dropout,
            use_rslora=settings.use_rslora,
            target_modules=targets,
            **common,
        )


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, layer) of PEFT's LoRA layers, quantized ones included."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and ADAPTER_NAME in module.lora_A:
            yield name, module


METHOD = Lora()

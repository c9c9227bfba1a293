from __future__ import annotations

from typing import Any

from peft import PeftConfig

from kasatune.methods.lora import Lora
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.table import METHODS


class RsLora(Lora):
    """y = W x + s B A drop(x), s = alpha / sqrt(r): the update keeps its size as r grows.

    Source: Kalajdzievski, arXiv 2312.03732; computed by PEFT.
    """

    info = METHODS["rslora"]

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """PEFT's LoraConfig with `use_rslora` true, whatever `method.use_rslora` is."""
        config: Any = super().config(settings, targets, common)
        config.use_rslora = True
        return config


METHOD = RsLora()

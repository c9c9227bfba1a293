from __future__ import annotations

from typing import Any

from peft import PeftConfig

from kasatune.methods.lora import Lora
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.table import METHODS


class Dora(Lora):
    """W' = m (W + s B A) / ||W + s B A||, row by row; m is trained and starts at ||W||; the norm gets no gradient.

    Source: Liu et al., arXiv 2402.09353; computed by PEFT.
    """

    info = METHODS["dora"]

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """PEFT's LoraConfig with `use_dora`."""
        config: Any = super().config(settings, targets, common)
        config.use_dora = True
        return config


METHOD = Dora()

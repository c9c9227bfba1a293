from __future__ import annotations

from kasatune.methods.lora import Lora
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.table import METHODS


class LoraPlus(Lora):
    """y = W x + s B A drop(x) as in LoRA; the learning rate of B is `ratio` times that of A.

    Source: Hayou, Ghosh, Yu, arXiv 2402.12354; PEFT's layers, the learning rates are set by kasatune.
    """

    info = METHODS["lora-plus"]

    def learning_rate_factor(self, name: str, settings: MethodSettings) -> float:
        """`ratio` for B, 1 for A."""
        return settings.options["ratio"] if ".lora_B." in name else 1.0


METHOD = LoraPlus()

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peft import PeftConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from kasatune.errors import ModelError
from kasatune.methods.lora import lora_layers
from kasatune.methods.shared.method import MethodSettings, TaskKind
from kasatune.methods.shared.residual_lora import ResidualLora
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class OLora(ResidualLora):
    """y = (W - s B0 A0) x + s B A drop(x), B0 = Q_r and A0 = R_r, the first r columns and rows of W = Q R.

    PEFT decomposes the stored weight, which a Conv1D holds transposed; such layers are refused.

    Source: Buyukakyuz, arXiv 2406.01775; computed by PEFT.
    """

    info = METHODS["olora"]

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`."""
        wrapped = super().attach(model, settings, kind, new_modules)
        for name, layer in lora_layers(wrapped):
            if isinstance(layer.get_base_layer(), Conv1D):
                raise ModelError(
                    f"method 'olora' decomposes Linear layers, and {name} is a Conv1D; choose pissa, or other targets"
                )
        return wrapped

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """PEFT's LoraConfig with this initialisation."""
        config: Any = super().config(settings, targets, common)
        config.init_lora_weights = "olora"
        return config


METHOD = OLora()

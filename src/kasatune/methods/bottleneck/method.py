"""`BottleneckMethod`: shared code of the methods that insert bottleneck adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from peft import PeftConfig

from kasatune.methods.bottleneck.config import BottleneckConfig
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.peft_adapter import AdapterMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BottleneckMethod(AdapterMethod):
    """h <- h + g(h), g(h) = W_up f(W_down drop(h) + b_down) + b_up, W_up = 0 at the start.

    Attributes:
        kind: where the adapters go, see BottleneckConfig.
        activation: f, by its name in transformers.
        layer_norm: g starts with its own LayerNorm.
        has_bias: g has b_down and b_up.
    """

    kind: ClassVar[str]
    activation: ClassVar[str] = "relu"
    layer_norm: ClassVar[bool] = False
    has_bias: ClassVar[bool] = True

    def targets(self, model: PreTrainedModel, settings: MethodSettings) -> None:
        """None: the architecture determines where adapters go."""

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """The BottleneckConfig of this package."""
        fields = {
            "r": settings.r,
            "kind": self.kind,
            "activation": self.activation,
            "layer_norm": self.layer_norm,
            "adapter_bias": self.has_bias,
            "adapter_dropout": settings.dropout,
        }
        return BottleneckConfig(**{**fields, **common})

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft import LNTuningConfig, PeftConfig

from kasatune.errors import ModelError
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.peft_adapter import AdapterMethod
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NORMS = ("LayerNorm", "RMSNorm")


class LnTuning(AdapterMethod):
    """y = gain * normalize(x) + shift; the gain and shift of every LayerNorm and RMSNorm of the model are trained.

    Source: Zhao et al., arXiv 2312.11420; computed by PEFT.
    """

    info = METHODS["ln-tuning"]

    def targets(self, model: PreTrainedModel, settings: MethodSettings) -> list[str] | str | None:
        """The normalizations, found by class name.

        Raises:
            ModelError: the model has none.
        """
        norms = {name.rpartition(".")[2] for name, m in model.named_modules() if type(m).__name__.endswith(_NORMS)}
        if not norms:
            raise ModelError(f"method 'ln-tuning': {type(model).__name__} has no LayerNorm or RMSNorm; choose lora")
        return sorted(norms)

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """PEFT's LNTuningConfig."""
        return LNTuningConfig(target_modules=targets, **common)


METHOD = LnTuning()

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft import IA3Config, PeftConfig
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING

from kasatune.errors import ModelError
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.peft_adapter import AdapterMethod
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION_OUTPUT = r".*attention\.output\.dense"


class IA3(AdapterMethod):
    """k' = l_k * k, v' = l_v * v, FFN' = W_2 (l_ff * f(W_1 x)); three trained vectors a block, initially 1.

    The layers are PEFT's choice for the architecture, with one correction: PEFT's `output.dense` for the BERT family
    also matches the projection after the attention, which the paper does not scale and which is excluded here. In
    GPT-2, where one layer computes queries, keys and values, the queries are scaled too.

    Source: Liu et al., arXiv 2205.05638; computed by PEFT.
    """

    info = METHODS["ia3"]

    def targets(self, model: PreTrainedModel, settings: MethodSettings) -> list[str] | str | None:
        """PEFT's layers for the architecture.

        Raises:
            ModelError: PEFT has none.
        """
        kind = model.config.model_type
        if kind not in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
            raise ModelError(f"method 'ia3' has no list of the layers to scale in a {kind} model; choose lora")
        return None

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """PEFT's IA3Config."""
        return IA3Config(target_modules=targets, exclude_modules=_ATTENTION_OUTPUT, **common)


METHOD = IA3()

from __future__ import annotations

from typing import Any

from peft import PeftConfig

from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.mixture import MixtureMethod, lora_fields, top_k_fields
from kasatune.methods.table import METHODS
from kasatune.mixtures.config import MoeLoraConfig


class MoeLora(MixtureMethod):
    """y = W x + s sum_i w_i(x) B_i A_i x over the `top_k` of N experts that a router chooses for each token.

    s = alpha / r; w = softmax(W_g x) of the chosen experts, divided by its sum if `top_k` > 1. Trained parameters:
    N r (in + out) in the experts and N in in the router of a layer. The balance loss N sum_i f_i P_i acts in every
    micro-batch, a mean over the routers times `balance_weight`.

    Reconstructed: the publications on mixtures of LoRA experts differ in details. Chosen here: one router for each
    layer, without a bias, W_g ~ N(0, 0.02^2), in float32; N = 8 and top_k = 2; each A_i as LoRA's A; the shares f of
    the optimizer step before, so that the gradient does not depend on gradient accumulation.

    Source: Zadouri et al., arXiv 2309.05444, with a choice of experts; the common baseline of MiLoRA, MoR and MALoRA;
    computed by kasatune.
    """

    info = METHODS["moe-lora"]

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """The MoeLoraConfig of this package."""
        return MoeLoraConfig(**{**lora_fields(settings, targets), **top_k_fields(settings), **common})


METHOD = MoeLora()

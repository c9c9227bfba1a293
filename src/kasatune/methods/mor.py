from __future__ import annotations

from typing import Any

from peft import PeftConfig

from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.mixture import MixtureMethod, lora_fields
from kasatune.methods.table import METHODS
from kasatune.mixtures.config import MorConfig


class Mor(MixtureMethod):
    """y = W x + s sum_i G_i(x) diag(lamB_i) B diag(lamA_i) A x, G = softmax(W_g x) over N pairs of vectors.

    s = alpha / r. All experts are one product of width N r (kasatune/mixtures/mor.py). Trained parameters:
    r (in + out) + N (r + out) + N in a layer; LLaMA-2-7B with r = 8 and N = 8 on the layers of the feed-forward
    sublayer: 23,205,888, the published 0.34 %.

    Reconstructed from the abstract and a summary. Chosen here: lamA ~ N(1, 0.02^2), so that the experts differ, lamB =
    1, B = 0, A as LoRA's, W_g ~ N(0, 0.02^2), one router for each layer. No balance loss: the paper reports that one
    does not help. The paper adapts the feed-forward sublayer; here `target_modules` decides, as for every method.

    Source: Tang et al., arXiv 2410.13408; computed by kasatune.
    """

    info = METHODS["mor"]

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """The MorConfig of this package."""
        own = {"num_experts": settings.options["experts"]}
        return MorConfig(**{**lora_fields(settings, targets), **own, **common})


METHOD = Mor()

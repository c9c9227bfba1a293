from __future__ import annotations

from typing import Any

from peft import PeftConfig

from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.mixture import MixtureMethod, lora_fields, top_k_fields
from kasatune.methods.table import METHODS
from kasatune.mixtures.config import MaloraConfig


class Malora(MixtureMethod):
    """y = W x + s sum_i w_i(x) B_i P_i S_A x over the `top_k` of N experts that a router chooses for each token.

    S_A (r, in) is shared by the experts of a layer, P_i is (rbar, r), B_i (out, rbar), rbar = `up_rank`; s = alpha / r;
    w as in `moe-lora`. Trained parameters: r in + N rbar (r + out) + N in a layer. On all layers of LLaMA-2-7B with N =
    8, r = 8 and rbar = 9, without routers: 107,149,312, where `moe-lora` has 159,907,840.

    Reconstructed: the abstract and a figure give the equation; the rule for the ranks, the initial values and the
    router are not published in a form that could be found. Chosen here: d = r and rbar = 9/8 r, with which "rbar > r"
    and "30 to 48 % fewer parameters" hold together; S_A with orthogonal rows and P ~ N(0, 1/r), scaled so that P_i S_A
    has rows of the length of LoRA's A; B = 0; S_A trained; the router of `moe-lora`, with 1e-3 for the balance loss.

    Source: Wang et al., arXiv 2410.22782; computed by kasatune.
    """

    info = METHODS["malora"]

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """The MaloraConfig of this package."""
        own = {name: settings.options[name] for name in ("up_rank", "train_shared")}
        return MaloraConfig(**{**lora_fields(settings, targets), **top_k_fields(settings), **own, **common})


METHOD = Malora()

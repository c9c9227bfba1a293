from __future__ import annotations

from typing import Any

from peft import PeftConfig

from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.residual_lora import ResidualLora
from kasatune.methods.table import METHODS


class Pissa(ResidualLora):
    """y = (W - s B0 A0) x + s B A drop(x), B0 = U_r sqrt(S_r / s), A0 = sqrt(S_r / s) Vh_r.

    U_r, S_r and Vh_r are the r largest singular triplets of W.

    Source: Meng, Wang, Zhang, arXiv 2404.02948; computed by PEFT, by default with the exact decomposition.
    """

    info = METHODS["pissa"]

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """PEFT's LoraConfig with this initialisation."""
        config: Any = super().config(settings, targets, common)
        iterations = settings.options["iterations"]
        config.init_lora_weights = "pissa" if iterations is None else f"pissa_niter_{iterations}"
        return config


METHOD = Pissa()

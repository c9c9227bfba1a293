from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear

from kasatune.linalg import tail_svd
from kasatune.methods.lora import ADAPTER_NAME
from kasatune.methods.shared.residual_lora import ResidualLora
from kasatune.methods.table import METHODS


class MiLora(ResidualLora):
    """y = (W - s B0 A0) x + s B A drop(x), B0 = U_d sqrt(S_d / s), A0 = sqrt(S_d / s) Vh_d.

    U_d, S_d and Vh_d are the r smallest singular triplets of W.

    The decomposition is computed in float64. The authors recommend alpha = r.

    Source: Wang et al., arXiv 2406.09044, and sufenlp/MiLoRA; PEFT's LoRA layers, initialised here.
    """

    info = METHODS["milora"]

    def initialize(self, layer: LoraLinear) -> None:
        """See the class."""
        base: Any = layer.get_base_layer()
        s = layer.scaling[ADAPTER_NAME]
        with torch.no_grad():
            weight: torch.Tensor = base.weight.T if layer.fan_in_fan_out else base.weight
            tail = tail_svd(weight, layer.r[ADAPTER_NAME])
            root = (tail.S / s).sqrt()
            factors: Any = layer
            A, B = factors.lora_A[ADAPTER_NAME].weight, factors.lora_B[ADAPTER_NAME].weight
            A.copy_(root[:, None] * tail.Vh)
            B.copy_(tail.U * root)
            weight.copy_(weight.float() - s * B.float() @ A.float())


METHOD = MiLora()

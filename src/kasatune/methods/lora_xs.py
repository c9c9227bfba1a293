from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kasatune.linalg import leading_triplets
from kasatune.methods.lora import ADAPTER_NAME
from kasatune.methods.shared.computed_lora import ComputedLinear, ComputedLora, Frozen, weight_under
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.table import METHODS


class LoraXs(ComputedLora):
    """y = W x + s U_r R S_r Vh_r drop(x), W ~ U_r S_r Vh_r its r largest singular triplets; R (r, r) alone is trained.

    R ~ N(0, sigma^2), sigma = 1e-5: training starts that close to the base. s = alpha / r. Trained parameters: r^2 a
    layer; RoBERTa-large with r = 25 on four layers a block: 60,000, the 60K of the paper.

    The triplets are computed by randomized subspace iteration with ten passes, as in the authors' code, in float64.

    Source: Balazy et al., arXiv 2405.17604, equation 2; PEFT's LoRA layers, their factors computed by kasatune.
    """

    info = METHODS["lora-xs"]

    def reform(self, layer: Any, settings: MethodSettings) -> None:
        """See `ComputedLora.reform`."""
        A, B = (factors[ADAPTER_NAME].weight.detach() for factors in (layer.lora_A, layer.lora_B))
        W = weight_under(layer)
        if W is not None and not A.is_meta:
            U, S, Vh = leading_triplets(W, settings.r)
            if len(S) < settings.r:  # a weight narrower than r has fewer
                pad = settings.r - len(S)
                U, Vh = nn.functional.pad(U, (0, pad)), nn.functional.pad(Vh, (0, 0, 0, pad))
                S = nn.functional.pad(S, (0, pad))
            A.copy_(S[:, None] * Vh)
            B.copy_(U)
        layer.lora_A[ADAPTER_NAME] = Frozen(A)
        layer.lora_B[ADAPTER_NAME] = _RotatedLeft(B, settings.options["sigma"])


class _RotatedLeft(ComputedLinear):
    """U R, with the frozen U (out, r) and the trained R (r, r)."""

    U: Tensor

    def __init__(self, U: Tensor, sigma: float) -> None:
        super().__init__()
        self.register_buffer("U", U, persistent=False)
        r = U.shape[1]
        draws = torch.device("meta" if U.is_meta else "cpu")
        self.R = nn.Parameter((sigma * torch.randn(r, r, device=draws)).to(U))

    @property
    def weight(self) -> Tensor:
        return self.U @ self.R


METHOD = LoraXs()

"""OPLoRA: LoRA projected away from the largest singular triplets of the weight."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kasatune.errors import ModelError
from kasatune.linalg import leading_triplets
from kasatune.methods.lora import ADAPTER_NAME
from kasatune.methods.shared.computed_lora import ComputedLinear, ComputedLora, weight_under
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.table import METHODS


class OpLora(ComputedLora):
    """y = W x + s P_L B A P_R drop(x), P_L = I - U_k U_k^T, P_R = I - V_k V_k^T, U_k and V_k of W's k largest triplets.

    U_k^T (W + s P_L B A P_R) = S_k V_k^T, and likewise from the right: the k largest singular triplets of W remain
    singular triplets of the tuned weight. A starts Kaiming uniform, B at 0. Saved as the plain LoRA of rank r with the
    factors A P_R and P_L B.

    Chosen here: `k` = 16, the smaller of two values reported for the paper; the projections are part of the forward
    pass, so that the optimizer works on A and B themselves; the triplets are computed in float64.

    Source: Xiong, Xie, arXiv 2510.13003 (abstract); PEFT's LoRA layers, their factors computed by kasatune.
    """

    info = METHODS["oplora"]

    def reform(self, layer: Any, settings: MethodSettings) -> None:
        """See `ComputedLora.reform`.

        Raises:
            ModelError: k is not below min(out, in), so that no update would be left.
        """
        k = settings.options["k"]
        if k >= min(layer.out_features, layer.in_features):
            raise ModelError(
                f"method.options.k: {k} received; a weight of shape {[layer.out_features, layer.in_features]} has only "
                f"{min(layer.out_features, layer.in_features)} singular directions, and k must be below that; lower k"
            )
        A, B = (factors[ADAPTER_NAME].weight for factors in (layer.lora_A, layer.lora_B))
        W = weight_under(layer)
        if W is None or A.is_meta:
            U, V = B.new_empty(layer.out_features, k), A.new_empty(layer.in_features, k)
        else:
            triplets = leading_triplets(W, k)
            U, V = triplets.U.to(B), triplets.Vh.T.to(A)
        layer.lora_A[ADAPTER_NAME] = Outside(A, V, dim=1)
        layer.lora_B[ADAPTER_NAME] = Outside(B, U, dim=0)


class Outside(ComputedLinear):
    """A factor without its part in given directions: F - F K K^T (dim 1) or F - K K^T F (dim 0).

    Args:
        factor: A (r, in) or B (out, r), trained.
        directions: K (in, k) or (out, k), orthonormal columns.
        dim: the dimension of the factor that K belongs to.
    """

    directions: Tensor

    def __init__(self, factor: nn.Parameter, directions: Tensor, *, dim: int) -> None:
        super().__init__()
        self.factor = factor
        self.dim = dim
        self.register_buffer("directions", directions.contiguous(), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The projected factor."""
        K = self.directions.to(self.factor.dtype)
        if self.dim == 1:
            return self.factor - (self.factor @ K) @ K.mT
        return self.factor - K @ (K.mT @ self.factor)


METHOD = OpLora()

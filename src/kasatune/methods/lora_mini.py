from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from kasatune.errors import InputError
from kasatune.methods.lora import ADAPTER_NAME
from kasatune.methods.shared.computed_lora import ComputedLinear, ComputedLora
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.table import METHODS


class LoraMini(ComputedLora):
    """y = W x + s B_aux B_train A_train A_aux drop(x): only A_train (r, a) and B_train (b, r) are trained.

    s = alpha / r; A_aux (a, in), B_aux (out, b). Trained parameters: r (a + b) a layer, where LoRA has r (in + out).

    Reconstructed from the abstract, which names the four matrices and the two that are trained. Chosen here: a = b =
    `inner`; A_aux ~ N(0, 1/in) and B_aux ~ N(0, 1/b), which preserve lengths on average; A_train as LoRA's A, uniform
    in +-1/sqrt(a); B_train = 0, so that training starts from the base's outputs. (A public implementation initializes
    both trained matrices with zero, so that neither ever gets a gradient.)

    Source: Singh, Aher, Garg, arXiv 2411.15804; PEFT's LoRA layers, their factors computed by kasatune.
    """

    info = METHODS["lora-mini"]

    def reform(self, layer: Any, settings: MethodSettings) -> None:
        """See `ComputedLora.reform`.

        Raises:
            InputError: `inner` is less than r, and would limit the rank of the update.
        """
        inner = settings.options["inner"]
        if inner < settings.r:
            raise InputError(
                f"method.options.inner: {inner} received, less than method.r = {settings.r}; the update's rank is at "
                "most the smaller of the two: raise inner or lower r"
            )
        A, B = (factors[ADAPTER_NAME].weight.detach() for factors in (layer.lora_A, layer.lora_B))
        draws = torch.device("meta" if A.is_meta else "cpu")
        A_aux = torch.randn(inner, A.shape[1], device=draws) / math.sqrt(A.shape[1])
        B_aux = torch.randn(B.shape[0], inner, device=draws) / math.sqrt(inner)
        A_train = torch.empty(settings.r, inner, device=draws)
        nn.init.kaiming_uniform_(A_train, a=math.sqrt(5))
        layer.lora_A[ADAPTER_NAME] = _Inner(A_train.to(A), A_aux.to(A))
        layer.lora_B[ADAPTER_NAME] = _Outer(torch.zeros(inner, settings.r, device=draws).to(B), B_aux.to(B))


class _Inner(ComputedLinear):
    """A_train A_aux."""

    aux: Tensor

    def __init__(self, train: Tensor, aux: Tensor) -> None:
        super().__init__()
        self.train_part = nn.Parameter(train)
        self.register_buffer("aux", aux, persistent=False)

    @property
    def weight(self) -> Tensor:
        return self.train_part @ self.aux


class _Outer(_Inner):
    """B_aux B_train."""

    @property
    def weight(self) -> Tensor:
        return self.aux @ self.train_part


METHOD = LoraMini()

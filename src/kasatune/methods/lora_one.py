"""LoRA-One: LoRA that starts with one gradient step of rank r."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from kasatune.linalg import leading_triplets
from kasatune.methods.lora import ADAPTER_NAME, Lora, lora_layers
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.starting_factors import Factors, computed_once, weight_gradients
from kasatune.methods.table import METHODS


class LoraOne(Lora):
    """y = W x + s B A drop(x), -dL/dW = U S Vh: B0 = U_r sqrt(S_r / (S_1 g)), A0 = sqrt(S_r / (S_1 g)) Vh_r, g `gamma`.

    Training starts from W + s B0 A0, one step of gradient descent of rank r away from the base, with the step size
    s / (S_1 g). The gradient is the mean over `samples` training rows. A layer that the loss does not reach starts as a
    LoRA. The result is a plain LoRA of rank r on the untouched base.

    The authors use s = alpha / sqrt(r) (`use_rslora`), and optionally a preconditioner of the later gradients, which is
    not offered here. S_1 in the denominator is in their code, not in their description.

    Source: Zhang, Liu, Chen, arXiv 2502.01235, and YuanheZ/LoRA-One; PEFT's LoRA layers, initialized here.
    """

    info = METHODS["lora-one"]

    def prepare(self, model: nn.Module, settings: MethodSettings, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """See `Method.prepare`: A0 and B0."""

        def compute() -> dict[str, Factors]:
            layers = dict(lora_layers(model))
            gradients = weight_gradients(model, layers, self.info.name, batches, settings.options["samples"])
            gamma = settings.options["gamma"]
            return {name: _one_step(gradient, settings.r, gamma) for name, gradient in gradients.items()}

        factors = computed_once(compute)
        with torch.no_grad():
            for name, layer in lora_layers(model):
                if name in factors:
                    width = len(factors[name].A)  # below r where the weight is narrower than r
                    layer.lora_A[ADAPTER_NAME].weight[:width] = factors[name].A.to(layer.lora_A[ADAPTER_NAME].weight)
                    layer.lora_B[ADAPTER_NAME].weight[:, :width] = factors[name].B.to(layer.lora_B[ADAPTER_NAME].weight)


def _one_step(gradient: Tensor, r: int, gamma: float) -> Factors:
    U, S, Vh = leading_triplets(-gradient.float(), r)
    largest = float(S[0])
    root = (S / (largest * gamma)).sqrt() if largest > 0 else S  # zeros: the loss does not reach the layer
    return Factors((root[:, None] * Vh).float(), (U * root).float())


METHOD = LoraOne()

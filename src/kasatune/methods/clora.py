from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kasatune.methods.lora import ADAPTER_NAME, Lora, lora_layers
from kasatune.methods.shared.method import MethodSettings, TaskKind
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CLora(Lora):
    """LoRA, trained with L_task + weight * sum_layers 1/2 (||A V||_F^2 + ||B^T U||_F^2), V and U fixed and random.

    V (in, k) and U (out, k) have orthonormal columns, drawn once for each layer from the recipe's seed. The penalty
    pushes A's row space and B's column space away from a random subspace of dimension k, which the update then barely
    changes. (In a layer narrower than k they have orthonormal rows, and the penalty only keeps the factors small.) V
    and U are not saved; during training they take k (in + out) numbers of memory a layer. Trained parameters:
    r (in + out) a layer, as LoRA.

    Chosen here: k = 256; the authors use 512 for 7B models and note that it depends on the task. weight = 1 is theirs.
    The penalty acts once per optimizer step, in float32.

    Source: Lu et al., arXiv 2410.16801, section 3; PEFT's LoRA layers, the penalty computed by kasatune.
    """

    info = METHODS["clora"]

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`."""
        wrapped = super().attach(model, settings, kind, new_modules)
        for _, layer in lora_layers(wrapped):
            device = layer.lora_A[ADAPTER_NAME].weight.device
            for name, length in (("clora_V", layer.in_features), ("clora_U", layer.out_features)):
                subspace = torch.empty(length, settings.options["k"], device="meta" if device.type == "meta" else "cpu")
                nn.init.orthogonal_(subspace)
                layer.register_buffer(name, subspace.to(device), persistent=False)
            layer.clora_weight = settings.options["weight"]
        return wrapped

    def step_penalty(self, model: nn.Module, settings: MethodSettings) -> Tensor | None:
        """The subspace penalty, see the class."""
        return subspace_penalty(model)

    def penalty_terms(self, model: nn.Module) -> dict[str, float]:
        """See `Method.penalty_terms`."""
        with torch.no_grad():
            penalty = subspace_penalty(model)
        return {} if penalty is None else {"penalty_subspace": float(penalty)}


def subspace_penalty(model: nn.Module) -> Tensor | None:
    """Weight * sum_layers 1/2 (||A V||_F^2 + ||B^T U||_F^2); None without V and U, as for a loaded adapter."""
    terms = []
    for _, layer in lora_layers(model):
        if hasattr(layer, "clora_V"):
            A, B = (factors[ADAPTER_NAME].weight.float() for factors in (layer.lora_A, layer.lora_B))
            overlap = (A @ layer.clora_V).square().sum() + (B.T @ layer.clora_U).square().sum()
            terms.append(layer.clora_weight / 2 * overlap)
    return torch.stack(terms).sum() if terms else None


METHOD = CLora()

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from kasatune.linalg import singular_values
from kasatune.methods.lora import ADAPTER_NAME, lora_layers
from kasatune.methods.shared.computed_lora import ComputedLinear, ComputedLora, weight_under
from kasatune.methods.shared.method import MethodSettings, TaskKind
from kasatune.methods.shared.peft_adapter import as_peft_model
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PREFIX = "base_model.model."


class Sara(ComputedLora):
    """y = W x + s B diag(lambda) A drop(x), of rank k: the fewest singular values of W that hold `share` of their sum.

    Each layer has its own k, computed once from its weight; s = alpha / k. Trained parameters: k (in + out + 1) a
    layer, known only when the weights are loaded.

    Reconstructed from the abstract, according to which the rank is computed from the singular values of W, and from a
    summary, according to which a truncated matrix of singular values is parallel to W (a mixture variant, which trains
    only such matrices, is not implemented). Chosen here: share = 0.01, as in an unofficial implementation; A Kaiming
    uniform, B = 0, lambda = 1, so that training starts from the base's outputs, as LoRA of rank k does.

    Source: Gu et al., arXiv 2408.03290; PEFT's LoRA layers, their factors computed by kasatune.
    """

    info = METHODS["sara"]

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`."""
        wrapped = super().attach(model, settings, kind, new_modules)
        ranks = {name.removeprefix(_PREFIX): layer.r[ADAPTER_NAME] for name, layer in lora_layers(wrapped)}
        config = as_peft_model(wrapped).peft_config[ADAPTER_NAME]
        assert isinstance(config, LoraConfig)
        config.rank_pattern = ranks
        return wrapped

    def trained_parameters(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> int | None:
        """None: the ranks depend on the weights."""
        return None

    def reform(self, layer: Any, settings: MethodSettings) -> None:
        """See `ComputedLora.reform`."""
        W = weight_under(layer)
        k = settings.r if W is None else rank_of_share(singular_values(W), settings.options["share"])
        like = layer.lora_A[ADAPTER_NAME].weight
        A, B = torch.empty(k, layer.in_features), torch.zeros(layer.out_features, k)
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        layer.lora_A[ADAPTER_NAME] = _Stretched(A.to(like))
        layer.lora_B[ADAPTER_NAME] = nn.Linear(k, layer.out_features, bias=False, device="meta")
        layer.lora_B[ADAPTER_NAME].weight = nn.Parameter(B.to(like))
        layer.r[ADAPTER_NAME] = k
        layer.scaling[ADAPTER_NAME] = settings.alpha / (math.sqrt(k) if settings.use_rslora else k)


def rank_of_share(S: Tensor, share: float) -> int:
    """The smallest k with S_1 + ... + S_k >= share * sum_i S_i; at least 1."""
    reached = S.cumsum(0) >= share * S.sum()
    return max(1, int((~reached).sum()) + 1) if bool(reached.any()) else len(S)


class _Stretched(ComputedLinear):
    """diag(lambda) A."""

    def __init__(self, A: Tensor) -> None:
        super().__init__()
        self.A = nn.Parameter(A)
        self.diagonal = nn.Parameter(torch.ones_like(A[:, 0]))

    @property
    def weight(self) -> Tensor:
        return self.diagonal[:, None] * self.A


METHOD = Sara()

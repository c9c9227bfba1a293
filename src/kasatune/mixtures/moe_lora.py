"""MoE-LoRA: a mixture of LoRA experts that a router chooses for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kasatune.mixtures.layer import (
    MixtureLayer,
    draw_device,
    linear_together,
    normal_rows,
    top_k_weights,
    uniform_rows,
)


class TopKLayer(MixtureLayer):
    """The router of a layer whose tokens choose `top_k` experts each."""

    def route(self, adapter_name: str, scores: Tensor) -> Tensor:
        """The weights of the experts (..., N) for router scores W_g x (..., N); 0 for those that are not chosen.

        Softmax and choice are in float32. Choices are counted, and the balance loss is recorded.
        """
        config = self.settings[adapter_name]
        probabilities = scores.float().softmax(-1)
        weights, index = top_k_weights(probabilities, config.top_k)
        if self.mixture_pass.counts(training=self.in_training):
            chosen = torch.zeros_like(probabilities).scatter(-1, index, 1 / config.top_k)
            self.mixture_pass.record(
                self.router_loads[adapter_name], probabilities, chosen, config.balance_weight, training=self.in_training
            )
        return weights


class MoeLoraLayer(TopKLayer):
    """y = W x + s sum_i w_i(x) B_i A_i x, w of the router W_g (mixtures/config.py).

    All experts are one product of width N r: sum_i w_i B_i A_i x = [B_1 .. B_N] (w * [A_1; ..; A_N] x). A loop over
    experts with the tokens of each multiplies N / top_k times less, but gathers and scatters rows of width `out`, and
    is the slower of the two at these widths (benchmarks/mixtures.py).

    Parameters: mixture_A (N r, in), mixture_B (out, N r), mixture_router W_g (N, in).
    """

    adapter_layer_names = ("mixture_A", "mixture_B", "mixture_router")

    def initial_parameters(self, config: Any) -> Mapping[str, Tensor]:
        """Each A_i as LoRA draws its A, B = 0, W_g ~ N(0, 0.02^2)."""
        width = config.num_experts * config.r
        return {
            "mixture_A": uniform_rows(width, self.in_features),
            "mixture_B": torch.zeros(self.out_features, width, device=draw_device()),
            "mixture_router": normal_rows(config.num_experts, self.in_features),
        }

    def update(self, adapter_name: str, x: Tensor) -> Tensor:
        """See `MixtureLayer.update`."""
        A, B, W_g = (p[adapter_name] for p in (self.mixture_A, self.mixture_B, self.mixture_router))
        if self.drops(adapter_name):
            hidden, scores = F.linear(self.mixture_dropout[adapter_name](x), A), F.linear(x, W_g)
        else:
            hidden, scores = linear_together(x, A, W_g)
        weights = self.settings[adapter_name].scaling * self.route(adapter_name, scores)
        return F.linear(weighted_experts(hidden, weights), B)


def weighted_experts(hidden: Tensor, weights: Tensor) -> Tensor:
    """The hidden values (..., N r) of N experts, each times its weight (..., N)."""
    experts = hidden.unflatten(-1, (weights.shape[-1], -1)) * weights.to(hidden.dtype).unsqueeze(-1)
    return experts.flatten(-2)

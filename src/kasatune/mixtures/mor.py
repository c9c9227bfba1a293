"""MoR: a mixture of ranks, whose experts are diagonal rescalings of one shared pair of LoRA factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kasatune.mixtures.layer import (
    ROUTER_DEVIATION,
    MixtureLayer,
    draw_device,
    linear_together,
    normal_rows,
    uniform_rows,
)


class MorLayer(MixtureLayer):
    """y = W x + s sum_i G_i(x) diag(lamB_i) B diag(lamA_i) A x, G = softmax(W_g x) over all N experts.

    Folded exactly into one product of width N r: y = W x + s [diag(lamB_i) B]_i (G_i lamA_i * A x)_i. For fewer than N
    tokens, as in generation with a cache, B is multiplied first and lamB last, which writes less.

    Parameters: mixture_A (r, in), mixture_B (out, r), mixture_scale_A lamA (N, r), mixture_scale_B lamB (N, out),
    mixture_router W_g (N, in).
    """

    adapter_layer_names = ("mixture_A", "mixture_B", "mixture_scale_A", "mixture_scale_B", "mixture_router")

    mixture_scale_A: nn.ParameterDict
    mixture_scale_B: nn.ParameterDict

    def initial_parameters(self, config: Any) -> Mapping[str, Tensor]:
        """A as LoRA's A, B = 0, lamA ~ N(1, 0.02^2), lamB = 1, W_g ~ N(0, 0.02^2)."""
        N, device = config.num_experts, draw_device()
        return {
            "mixture_A": uniform_rows(config.r, self.in_features),
            "mixture_B": torch.zeros(self.out_features, config.r, device=device),
            "mixture_scale_A": 1 + normal_rows(N, config.r, ROUTER_DEVIATION),
            "mixture_scale_B": torch.ones(N, self.out_features, device=device),
            "mixture_router": normal_rows(N, self.in_features),
        }

    def add_update(self, adapter_name: str, x: Tensor, result: Tensor) -> Tensor:
        """See `MixtureLayer.add_update`."""
        A, B, lam_A, lam_B, W_g = (getattr(self, name)[adapter_name] for name in self.adapter_layer_names)
        x = self.cast(adapter_name, x)
        if self.drops(adapter_name):
            z, scores = F.linear(self.mixture_dropout[adapter_name](x), A), F.linear(x, W_g)
        else:
            z, scores = linear_together(x, A, W_g)
        gates = scores.float().softmax(-1)
        self.mixture_pass.record(self.router_loads[adapter_name], gates, gates, 0.0, training=self.in_training)
        experts = rank_experts(z, self.settings[adapter_name].scaling * gates, lam_A)
        if gates[..., 0].numel() < len(lam_B):
            return (result + (F.linear(experts, B) * lam_B).sum(-2)).to(result.dtype)
        folded = lam_B.unsqueeze(1) * B.T  # (N, r, out)
        return self.add_product(result, experts.flatten(-2), folded.flatten(0, 1))


def rank_experts(z: Tensor, gates: Tensor, lam_A: Tensor) -> Tensor:
    """G_i lamA_i * z (..., N, r) for z = A x (..., r), gates G (..., N), the scaling s included, and lam_A (N, r)."""
    return z.unsqueeze(-2) * lam_A * gates.to(z.dtype).unsqueeze(-1)

"""MoE-LoRA: a mixture of LoRA experts that a router chooses for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

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

LOOP_TOKENS = 64
LOOP_COLUMNS = 256
"""Bounds above which the loop over experts is faster on a CPU. Milliseconds of product and loop, forward and backward,
1,024 tokens, in = out = 1024, top-2 of N = 8: r = 8, 14 and 30; r = 32, 30 and 33; r = 64, 56 and 45; r = 128, 101 and
71. N = 32, r = 16: 59 and 41."""


class Routing(NamedTuple):
    """What a router chose for each token.

    Attributes:
        weights: w (..., N), 0 for experts that are not chosen.
        experts: (..., top_k), the numbers of the chosen ones.
        probabilities: softmax of the scores (..., N); None where nothing is counted.
    """

    weights: Tensor
    experts: Tensor
    probabilities: Tensor | None

    def split(self) -> list[Routing]:
        """The routing of each layer, if the dimension before the last one counts layers."""
        layers = self.weights.shape[-2]
        parts = [[None] * layers if part is None else part.unbind(-2) for part in self]
        return [Routing(*values) for values in zip(*parts, strict=True)]


class TopKLayer(MixtureLayer):
    """The router of a layer whose tokens choose `top_k` experts each."""

    def choose(self, adapter_name: str, scores: Tensor) -> Routing:
        """The choice for router scores W_g x (..., N), in float32."""
        scores = scores.float()
        counted = self.mixture_pass.counts(training=self.in_training)
        weights, index = top_k_weights(scores, self.settings[adapter_name].top_k)
        return Routing(weights, index, scores.softmax(-1) if counted else None)

    def record(self, adapter_name: str, routing: Routing) -> None:
        """Count the choices, and add the balance loss to those of the forward pass."""
        probabilities = routing.probabilities
        if probabilities is not None:
            config = self.settings[adapter_name]
            chosen = torch.zeros_like(probabilities).scatter(-1, routing.experts, 1 / config.top_k)
            self.mixture_pass.record(
                self.router_loads[adapter_name], probabilities, chosen, config.balance_weight, training=self.in_training
            )


class MoeLoraLayer(TopKLayer):
    """y = W x + s sum_i w_i(x) B_i A_i x, w of the router W_g (mixtures/config.py).

    Computed in one of two forms, equal to rounding: all experts as one product of width N r,
    [B_1 .. B_N] (w * [A_1; ..; A_N] x), or one expert after another with the tokens that chose it (`loops`).

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

    def loops(self, config: Any, x: Tensor) -> bool:
        """Whether the loop over experts is the faster form for x (..., in).

        The product multiplies (N - top_k) r columns in vain; the loop gathers and scatters rows of x and of the update,
        which costs as much as `LOOP_COLUMNS` columns. On a GPU it would also wait for the numbers of tokens.
        """
        many = x.device.type == "cpu" and x[..., 0].numel() >= LOOP_TOKENS and not torch.compiler.is_compiling()
        return many and (config.num_experts - config.top_k) * config.r > LOOP_COLUMNS

    def add_update(self, adapter_name: str, x: Tensor, result: Tensor) -> Tensor:
        """See `MixtureLayer.add_update`."""
        config = self.settings[adapter_name]
        A, B, W_g = (p[adapter_name] for p in (self.mixture_A, self.mixture_B, self.mixture_router))
        x = self.cast(adapter_name, x)
        if self.loops(config, x):
            routing = self.choose(adapter_name, F.linear(x, W_g))
            self.record(adapter_name, routing)
            x = self.mixture_dropout[adapter_name](x)
            update = loop_over_experts(x, routing.weights, routing.experts, A, B)
            return (result + config.scaling * update).to(result.dtype)
        if self.drops(adapter_name):
            hidden, scores = F.linear(self.mixture_dropout[adapter_name](x), A), F.linear(x, W_g)
        else:
            hidden, scores = linear_together(x, A, W_g)
        routing = self.choose(adapter_name, scores)
        self.record(adapter_name, routing)
        return self.add_product(result, weighted_experts(hidden, config.scaling * routing.weights), B.T)


def weighted_experts(hidden: Tensor, weights: Tensor) -> Tensor:
    """The hidden values (..., N r) of N experts, each times its weight (..., N)."""
    experts = hidden.unflatten(-1, (weights.shape[-1], -1)) * weights.to(hidden.dtype).unsqueeze(-1)
    return experts.flatten(-2)


def loop_over_experts(x: Tensor, weights: Tensor, index: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """sum_i w_i B_i A_i x over the chosen experts, each for the tokens that chose it.

    Args:
        x: (..., in).
        weights: w (..., N).
        index: (..., top_k), the chosen experts.
        A: [A_1; ..; A_N] (N r, in).
        B: [B_1 .. B_N] (out, N r).
    """
    N, top_k = weights.shape[-1], index.shape[-1]
    order = index.flatten().argsort(stable=True)  # the choices, by expert
    tokens = order // top_k
    counts = index.flatten().bincount(minlength=N).tolist()
    factors = weights.gather(-1, index).flatten()[order].to(x.dtype).unsqueeze(-1)
    rows = x.flatten(0, -2).index_select(0, tokens)
    experts = zip(
        rows.split(counts),
        factors.split(counts),
        A.unflatten(0, (N, -1)).unbind(0),
        B.unflatten(1, (N, -1)).unbind(1),
        strict=True,
    )
    changes = torch.cat([F.linear(w * F.linear(part, A_i), B_i) for part, w, A_i, B_i in experts])
    update = changes.new_zeros(weights[..., 0].numel(), len(B)).index_add(0, tokens, changes)
    return update.view(*x.shape[:-1], -1)

"""MALoRA: a mixture of asymmetric LoRA experts, whose down-projections share a low-rank subspace."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kasatune.distributed.gather_scatter import is_sharded
from kasatune.mixtures.layer import draw_device, is_short, linear_together, normal_rows
from kasatune.mixtures.moe_lora import Routing, TopKLayer, weighted_experts

SAME_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
)
"""Names of layers that read the same tensor in the transformers that have them. Whether they do is checked in every
forward pass: a wrong entry costs time and changes no result."""


class SharedInput:
    """Layers that read the same input x: the first one that is called computes S_A x and the routing of all.

    The results wait for the other layers, which recognize x by identity. What is not fetched, because a layer was not
    called or got another input, is dropped with the next product.
    """

    def __init__(self) -> None:
        self.layers: list[MaloraLayer] = []
        self._clear()

    def _clear(self) -> None:
        self._source: Tensor | None = None
        self._waiting: dict[int, tuple[Tensor, Routing]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the tensors of a forward pass, which cannot be copied."""
        return {"layers": self.layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the layers, between two passes."""
        self.layers = state["layers"]
        self._clear()

    def compute(self, layer: MaloraLayer, adapter_name: str, source: Tensor) -> tuple[Tensor, Routing]:
        """S_A x and the routing of a layer, for an input without dropout in any dtype."""
        ready = self._waiting.pop(id(layer), None) if source is self._source else None
        if ready is None:
            x = layer.cast(adapter_name, source)
            members = [layer] + [m for m in self.layers if m is not layer and m.acting() == adapter_name]
            members = [m for m in members if m is layer or m.fits_with(layer, adapter_name)]
            if len(members) == 1 or is_short(x) or torch.compiler.is_compiling():
                z, scores = linear_together(x, layer.shared(adapter_name), layer.mixture_router[adapter_name])
                return z, layer.choose(adapter_name, scores)
            routers = torch.cat([m.mixture_router[adapter_name] for m in members])
            *inputs, scores = linear_together(x, *(m.shared(adapter_name) for m in members), routers)
            routings = layer.choose(adapter_name, scores.unflatten(-1, (len(members), -1))).split()
            self._source = source
            self._waiting = {id(m): (z, own) for m, z, own in zip(members, inputs, routings, strict=True)}
            ready = self._waiting.pop(id(layer))
        if not self._waiting:
            self._source = None
        return ready


class MaloraLayer(TopKLayer):
    """y = W x + s sum_i w_i(x) B_i P_i S_A x, S_A shared by the experts of the layer, w as in MoE-LoRA.

    S_A x and the routing are computed at once for layers that read the same input (`SharedInput`). For many tokens,
    B_i P_i is multiplied first, which makes the remaining product N d wide instead of N rbar; for few, P_i S_A x.

    Parameters: mixture_S S_A (d, in), mixture_P (N, rbar, d), mixture_B (out, N rbar), mixture_router W_g (N, in);
    d = r, rbar = config.up_rank.
    """

    adapter_layer_names = ("mixture_S", "mixture_P", "mixture_B", "mixture_router")

    mixture_S: nn.ParameterDict
    mixture_P: nn.ParameterDict
    shared_input: SharedInput

    def shared(self, adapter_name: str) -> Tensor:
        """S_A (d, in)."""
        return self.mixture_S[adapter_name]

    def fits_with(self, other: MaloraLayer, adapter_name: str) -> bool:
        """Whether the matrices of both layers can be multiplied as one."""
        own, its = self.shared(adapter_name), other.shared(adapter_name)
        same = own.shape[1:] == its.shape[1:] and own.device == its.device and own.dtype == its.dtype
        same = same and self.training == other.training
        return same and not is_sharded(own) and not self.drops(adapter_name)

    def initial_parameters(self, config: Any) -> Mapping[str, Tensor]:
        """S_A with orthogonal rows of squared length 1/3, P ~ N(0, 1/d), B = 0, W_g ~ N(0, 0.02^2).

        The rows of P_i S_A then have the mean squared length of the rows of a LoRA's A, 1/3.
        """
        N, rbar, d, device = config.num_experts, config.wide_rank, config.r, draw_device()
        S = torch.empty(d, self.in_features, device=device)
        nn.init.orthogonal_(S, gain=math.sqrt(1 / 3))
        return {
            "mixture_S": S,
            "mixture_P": normal_rows(N * rbar, d, 1 / math.sqrt(d)).view(N, rbar, d),
            "mixture_B": torch.zeros(self.out_features, N * rbar, device=device),
            "mixture_router": normal_rows(N, self.in_features),
        }

    def update_layer(self, adapter_name: str, config: Any, weight: Any) -> None:
        """See `MixtureLayer.update_layer`; S_A is frozen with train_shared=False."""
        super().update_layer(adapter_name, config, weight)
        if not config.train_shared:
            self.frozen_peft_weight_names[adapter_name] = ("mixture_S",)
            self.set_adapter(self.active_adapters)

    def add_update(self, adapter_name: str, x: Tensor, result: Tensor) -> Tensor:
        """See `MixtureLayer.add_update`."""
        if self.drops(adapter_name):
            x = self.cast(adapter_name, x)
            z = F.linear(self.mixture_dropout[adapter_name](x), self.shared(adapter_name))
            routing = self.choose(adapter_name, F.linear(x, self.mixture_router[adapter_name]))
        else:
            z, routing = self.shared_input.compute(self, adapter_name, x)
        self.record(adapter_name, routing)
        weights = self.settings[adapter_name].scaling * routing.weights
        P, B = self.mixture_P[adapter_name], self.mixture_B[adapter_name]
        N, rbar, _ = P.shape
        if weights[..., 0].numel() < N * rbar:
            return self.add_product(result, weighted_experts(F.linear(z, P.flatten(0, 1)), weights), B.T)
        folded = P.transpose(1, 2) @ B.T.unflatten(0, (N, rbar))  # (N, d, out)
        experts = z.unsqueeze(-2) * weights.to(z.dtype).unsqueeze(-1)  # (..., N, d)
        return self.add_product(result, experts.flatten(-2), folded.flatten(0, 1))


def join_inputs(layers: Mapping[str, MaloraLayer]) -> None:
    """Give the layers that read the same input, by their names in the model, one `SharedInput`."""
    groups: dict[tuple[str, tuple[str, ...]], SharedInput] = {}
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        siblings = next((names for names in SAME_INPUT if child in names), (child,))
        group = groups.setdefault((parent, siblings), SharedInput())
        group.layers.append(layer)
        layer.shared_input = group

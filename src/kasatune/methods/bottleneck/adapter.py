"""`Bottleneck`: the network of one adapter, down-projection, activation, up-projection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.activations import get_activation


@dataclass(frozen=True)
class Shape:
    """Width, activation, LayerNorm, biases and dropout of one adapter.

    Args:
        inside: r, the width of the bottleneck.
        activation: f, by its name in transformers.
        layer_norm: it starts with its own LayerNorm.
        has_bias: both projections have a bias.
        dropout: dropout probability on the input of the first projection.
    """

    inside: int
    activation: str
    layer_norm: bool
    has_bias: bool
    dropout: float


class Bottleneck(nn.Module):
    """g(h) = W_up f(W_down drop(LN(h)) + b_down) + b_up, with LN and biases if `shape` has them.

    W_down (r, in) is initialized as A in LoRA, uniform in +-1/sqrt(in); biases and W_up (out, r) start at zero, so that
    g = 0 before the first step. Houlsby and others draw a small W_up; see docs/deviations.md.

    Args:
        width_in: length of h.
        width_out: length of g(h).
        shape: everything else.
        device: of its parameters, which are always drawn on the CPU, so that a seed gives the same adapter everywhere.
        dtype: of its parameters.
    """

    def __init__(self, width_in: int, width_out: int, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        draws = torch.device("meta" if device.type == "meta" else "cpu")
        self.norm = nn.LayerNorm(width_in, device=draws, dtype=dtype) if shape.layer_norm else nn.Identity()
        self.dropout = nn.Dropout(shape.dropout) if shape.dropout > 0 else nn.Identity()
        self.down = nn.Linear(width_in, shape.inside, bias=shape.has_bias, device=draws, dtype=dtype)
        self.activation = get_activation(shape.activation)
        self.up = nn.Linear(shape.inside, width_out, bias=shape.has_bias, device=draws, dtype=dtype)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            if zero is not None:
                nn.init.zeros_(zero)
        if not self.up.weight.is_meta:  # PEFT creates it on the meta device before it loads weights
            self.to(device)

    def forward(self, h: Tensor) -> Tensor:
        """g(h), (..., out) for h (..., in); computed in the adapter's dtype."""
        return self.up(self.activation(self.down(self.dropout(self.norm(h.to(self.down.weight.dtype))))))

"""The small network that every bottleneck adapter is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.activations import get_activation


@dataclass(frozen=True)
class Shape:
    """What one adapter is made of.

    Args:
        inside: r, the width of the bottleneck.
        activation: f, by its name in transformers.
        layer_norm: a LayerNorm of its own comes first.
        has_bias: both projections have a bias.
        dropout: probability on what enters the first projection.
    """

    inside: int
    activation: str
    layer_norm: bool
    has_bias: bool
    dropout: float


class Bottleneck(nn.Module):
    """g(h) = W_up f(W_down drop(LN(h)) + b_down) + b_up, LN and biases where the method has them.

    W_down (r, in) is drawn as LoRA draws A, uniform in +-1/sqrt(in); biases and W_up (out, r) are zero, so that
    g = 0 before the first step. Houlsby and others draw W_up small and not zero; see docs/deviations.md.

    Args:
        width_in: length of h.
        width_out: length of g(h).
        shape: the rest.
        device: where its parameters go; drawn on the CPU whatever it is, so that one seed gives one adapter.
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
        if not self.up.weight.is_meta:  # as PEFT makes it where weights are about to be loaded
            self.to(device)

    def forward(self, h: Tensor) -> Tensor:
        """g(h), (..., out) for h (..., in); computed in the adapter's dtype."""
        return self.up(self.activation(self.down(self.dropout(self.norm(h.to(self.down.weight.dtype))))))

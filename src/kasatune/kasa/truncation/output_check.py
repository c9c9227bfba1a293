"""Warn at the first training forward pass if what an adapter drops changes a layer's outputs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_SHARE = 0.1
"""||T x|| / ||W x + b|| of a layer, over the tokens of one batch, above which an adapter warns."""


@dataclass
class OutputCheck:
    """The check of one adapter, shared by its layers: one warning for all of them.

    Attributes:
        remedy: what to change in the configuration.
        warned: whether the warning was given; the other layers are then not measured.
    """

    remedy: str
    warned: bool = False

    @torch.no_grad()
    def measure(self, name: str, dropped: Tensor, output: Tensor) -> None:
        """Compare T x with the output of the base layer, both of one batch."""
        base = float(output.float().norm())
        share = float(dropped.float().norm()) / base if base > 0 else 0.0
        if share <= LARGEST_SHARE:
            return
        self.warned = True
        warnings.warn(
            f"KaSA: the component dropped from {name} is {share:.0%} of the layer's output on the first training "
            f"batch, so that training starts from a changed model. {self.remedy}",
            stacklevel=3,
        )


def remedy(truncate_by: str) -> str:
    """The advice of a warning, for a way of choosing the component."""
    if truncate_by == "magnitude":
        return "Use KasaConfig(truncate_by='activation'), which drops what activations use least, or drop=0."
    return "Use a smaller KasaConfig(drop=...), or calibrate on text that is like the training data."

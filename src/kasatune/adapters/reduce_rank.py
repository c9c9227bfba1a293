"""Reduce the rank of a LoRA adapter: the nearest update of a given rank, or with a given share of the energy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from kasatune.adapters.adapter_files import AdapterFiles
from kasatune.adapters.lora_export import StackedLora, lora_files, stock_layers, trailing_dimensions
from kasatune.errors import InputError
from kasatune.linalg import product_svd


class LayerError(NamedTuple):
    """The error of a layer: its rank before and after, ||dW||_F, and ||dW - dW'||_F / ||dW||_F."""

    rank_before: int
    rank: int
    norm: float
    relative_error: float


class ReducedAdapter(NamedTuple):
    """A stock LoRA adapter of reduced rank, the error of each layer, and that of all layers together."""

    files: AdapterFiles
    layers: dict[str, LayerError]
    relative_error: float


def reduce_rank(files: AdapterFiles, choose_rank: Callable[[Tensor], int]) -> ReducedAdapter:
    """DW' = U_R S_R Vh_R, the R largest singular triplets of each layer's complete update dW: the nearest of rank R.

    dW = B A is decomposed through its factors and never formed. S is split evenly over the new A and B, so that both
    stay well within the range of 16-bit numbers.

    Args:
        files: a stock LoRA adapter.
        choose_rank: returns R for the singular values of a layer, descending.
    """
    layers, rest = stock_layers(files)
    reduced: dict[str, StackedLora] = {}
    errors: dict[str, LayerError] = {}
    for name, (A, B) in layers.items():
        U, S, Vh = product_svd(B, A)
        rank = max(1, min(choose_rank(S), len(S)))
        root = S[:rank].sqrt()
        reduced[name] = StackedLora((root[:, None] * Vh[:rank]).contiguous(), (U[:, :rank] * root).contiguous())
        norm, lost = float(S.double().norm()), float(S[rank:].double().norm())
        errors[name] = LayerError(A.shape[0], rank, norm, lost / norm if norm else 0.0)
    files = lora_files(files.config, reduced, rest, trailing_dimensions(files))
    return ReducedAdapter(files, errors, overall_error(errors))


def overall_error(errors: Mapping[str, LayerError]) -> float:
    """sqrt(sum_l ||dW_l - dW'_l||^2) / sqrt(sum_l ||dW_l||^2)."""
    norm = math.hypot(*(error.norm for error in errors.values()))
    lost = math.hypot(*(error.norm * error.relative_error for error in errors.values()))
    return lost / norm if norm else 0.0


def fixed_rank(rank: int, name: str = "rank") -> Callable[[Tensor], int]:
    """The same rank for every layer, for `reduce_rank`.

    Args:
        rank: the rank.
        name: what the caller calls it.

    Raises:
        InputError: it is not a whole number of at least 1.
    """
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise InputError(f"{name} is {rank!r}, must be a whole number of at least 1")
    return lambda S: rank


def rank_for_energy(share: float) -> Callable[[Tensor], int]:
    """The smallest R with sum_{i <= R} S_i^2 >= share * sum S_i^2 in each layer, for `reduce_rank`.

    Raises:
        InputError: the share is not above 0 and at most 1.
    """
    if isinstance(share, bool) or not 0 < share <= 1:
        raise InputError(f"energy is {share!r}, must be above 0 and at most 1: 0.99 keeps 99 % of each layer's update")

    def choose(S: Tensor) -> int:
        energy = S.double().square().cumsum(0)
        if not len(S) or energy[-1] == 0:
            return 1
        # Rounding must not require one triplet more than there are.
        return int((energy < share * energy[-1] * (1 - 1e-12)).sum()) + 1

    return choose

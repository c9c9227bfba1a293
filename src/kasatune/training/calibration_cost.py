"""Estimate what calibration costs before the first step: seconds and memory, from the shapes of the layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kasatune.kasa.truncation.self_written_text import LENGTH, SEQUENCES
from kasatune.linalg.leading_directions import direction_count
from kasatune.methods.shared.capabilities import CalibrationNeeds
from kasatune.training.parameter_count import LayerPlan

_SIDE = 512  # of the product that measures this machine
_THIN = 0.4  # share of the rate that products with the few rows of one generated token reach
_REDUCTION = 0.25  # share of the rate that the reduction to tridiagonal form reaches
_BYTES_PER_SECOND = 1e10  # at which weights are read from memory
_GRADIENT = 3  # passes that a forward and a backward pass cost
_PREFIXES = 9  # prefixes of candidates that sensitivity measures
_HELD_BACK = 0.25  # of the rows, for these measurements


@dataclass(frozen=True)
class CalibrationCost:
    """The estimated cost of a calibration on a CPU.

    Attributes:
        source: "generated" or "task".
        tokens: that the base reads.
        reading_seconds: for running the base on them and summing second moments.
        choosing_seconds: for the eigenvectors of all layers; on the CPU whatever the device of the run.
        memory_bytes: of the second moments of all layers, held until the components are chosen.
    """

    source: str
    tokens: int
    reading_seconds: float
    choosing_seconds: float
    memory_bytes: int

    @property
    def seconds(self) -> float:
        """Of both parts."""
        return self.reading_seconds + self.choosing_seconds


def calibration_cost(
    needs: CalibrationNeeds,
    layers: Sequence[LayerPlan],
    parameters: int,
    weight_bytes: int,
    max_length: int,
    rates: tuple[float, float] | None = None,
) -> CalibrationCost:
    """The cost of measuring a base model and choosing components and directions.

    A forward pass takes 2 parameters operations for each token, and the second moments of a layer 2 k^2,
    k = min(out, in). Choosing a component takes 4/3 k^3 for the eigenvectors and 4 k out in for the products around
    them. The moments take 8 k^2 bytes of each layer. With `protect` those of the inputs are held as well, 4 in bytes
    for each token or 8 in^2, once for the layers of one block that read inputs of one width.

    Args:
        needs: of the method.
        layers: adapted layers.
        parameters: of the model.
        weight_bytes: of the model as it is held.
        max_length: of a training row, in tokens.
        rates: operations per second in float32 and in float64; None to measure this machine.
    """
    fast, exact = machine_rates() if rates is None else rates
    generated = needs.source == "generated"
    tokens = SEQUENCES * (LENGTH - 1) if generated else needs.rows * max_length
    forward = 2.0 * parameters * tokens
    reading = max(forward / (fast * _THIN), LENGTH * weight_bytes / _BYTES_PER_SECOND) if generated else forward / fast
    if needs.gradients:
        reading += forward * ((1 - _HELD_BACK) * _GRADIENT + _HELD_BACK * _PREFIXES) / fast
    choosing, memory = 0.0, 0.0
    inputs: set[tuple[str, int]] = set()
    for layer in layers:
        out, width = layer.shape
        k = min(out, width)
        if needs.drop:
            vectors = 9 if needs.gradients else 4 / 3  # all of them, or the last d
            choosing += (vectors * k**3 / _REDUCTION + 4.0 * k * out * width) / exact
            reading += 2.0 * tokens * k**2 / fast
            memory += 8.0 * k**2
        elif not needs.protect:
            continue
        block = layer.name.rpartition(".")[0]
        if needs.protect and (block, width) not in inputs:
            inputs.add((block, width))
            n = min(tokens, width)
            memory += min(4.0 * tokens * width, 8.0 * width**2)
            choosing += (4 / 3 * n**3 / _REDUCTION + 2.0 * n * width * direction_count(needs.protect, width)) / exact
            reading += 2.0 * tokens * width**2 / fast if tokens >= width else 0.0
    return CalibrationCost(needs.source, tokens, reading, choosing, int(memory))


@lru_cache(maxsize=1)
def machine_rates() -> tuple[float, float]:
    """Operations per second of a product of two matrices on this machine's CPU, in float32 and in float64."""
    return _rate(torch.float32), _rate(torch.float64)


def _rate(dtype: torch.dtype) -> float:
    matrix = torch.ones(_SIDE, _SIDE, dtype=dtype)
    return 2.0 * _SIDE**3 / min(_seconds(matrix.matmul, matrix) for _ in range(3))


def _seconds(work: Callable[[Tensor], Tensor], argument: Tensor) -> float:
    start = time.perf_counter()
    work(argument)
    return max(time.perf_counter() - start, 1e-9)

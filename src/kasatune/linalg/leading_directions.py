"""The directions in which a layer's inputs are strongest: leading eigenvectors of C = E[x x^T]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from kasatune.errors import ModelError


@dataclass(frozen=True)
class InputMoments:
    """C = E[x x^T] of a layer's inputs on calibration tokens, or the inputs themselves where they are the smaller.

    Attributes:
        rows: the inputs, (tokens, in), float32; None if `moments` is given.
        moments: C, (in, in), float64, symmetric; None if `rows` is given.
        tokens: number of tokens.
    """

    rows: Tensor | None
    moments: Tensor | None
    tokens: int


@dataclass(frozen=True)
class LeadingDirections:
    """K (in, c), orthonormal columns, float32: the c leading eigenvectors of C, the strongest first.

    Attributes:
        K: the directions; fewer than requested if C has a lower rank.
        energy: trace(K^T C K) / trace(C), the share of the inputs' energy in these directions; 0 for zero inputs.
    """

    K: Tensor
    energy: float


def direction_count(share: float, in_features: int) -> int:
    """C = ceil(share in): how many directions are protected; 0 only for a share of 0."""
    # a product such as 0.1 * 30 lies above the whole number by rounding
    return math.ceil(share * in_features - 1e-9)


def leading_directions(inputs: InputMoments, count: int, *, name: str = "layer") -> LeadingDirections:
    """The `count` leading eigenvectors of C, in float64 by LAPACK.

    With inputs X (n, in) and n < in they are X^T U S^(-1) of the eigenvectors U of X X^T (n, n).

    Args:
        inputs: of the layer.
        count: at least 1.
        name: of the layer, for error messages.

    Raises:
        ModelError: the inputs hold NaN or infinite values.
    """
    given = inputs.rows if inputs.moments is None else inputs.moments
    assert given is not None
    if not bool(torch.isfinite(given).all()):
        raise ModelError(
            f"layer {name!r}: its inputs on the calibration text hold NaN or infinite values: check the checkpoint and "
            "the calibration text, or calibrate in float32"
        )
    values = given.detach().to("cpu", torch.float64).numpy()
    G = values if inputs.moments is not None else values @ values.T
    trace = float(np.trace(G))
    first = max(len(G) - count, 0)
    eigenvalues, vectors = scipy.linalg.eigh(G, subset_by_index=(first, len(G) - 1))
    eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    present = eigenvalues > len(G) * np.finfo(np.float64).eps * max(trace, 0.0)
    eigenvalues, vectors = eigenvalues[present], vectors[:, present]
    if inputs.moments is None:
        vectors = values.T @ (vectors / np.sqrt(eigenvalues))
    energy = float(eigenvalues.sum() / trace) if trace > 0 else 0.0
    return LeadingDirections(torch.from_numpy(np.ascontiguousarray(vectors)).float(), min(energy, 1.0))

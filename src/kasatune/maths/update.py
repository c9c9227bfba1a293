from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Factors(NamedTuple):
    """The trainable factors of one layer: A (r, in), sigma (r,) or (r, r), B (out, r)."""

    A: Tensor
    sigma: Tensor
    B: Tensor


def update(factors: Factors, scaling: float) -> Tensor:
    """ΔW = s B diag(sigma) A, or s B sigma A for a dense core: the weight update, shape (out, in).

    The paper writes it as eta dU dS dV^T with s = eta, B = dU, A = dV^T.
    """
    A, sigma, B = factors
    core_A = sigma.unsqueeze(-1) * A if sigma.ndim == 1 else sigma @ A
    return scaling * (B @ core_A)

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kasatune.linalg.spectrum import ThinSVD, product_svd


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


def update_svd(factors: Factors, scaling: float) -> ThinSVD:
    """The SVD of dW = s B diag(sigma) A (or s B sigma A), r triplets, from the factors alone; see `product_svd`."""
    A, sigma, B = factors
    core = torch.diag(sigma) if sigma.ndim == 1 else sigma
    dtype = torch.promote_types(B.dtype, torch.float32)
    triplets = product_svd(scaling * (B.detach().double() @ core.detach().double()), A)
    return ThinSVD(*(t.to(dtype) for t in triplets))

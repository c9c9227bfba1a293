"""The r largest singular triplets of a weight, by randomized subspace iteration."""

from __future__ import annotations

import torch
from torch import Tensor

from kasatune.linalg.spectrum import ThinSVD

_OVERSAMPLED = 10
_ITERATIONS = 10
_SEED = 42


def leading_triplets(W: Tensor, r: int) -> ThinSVD:
    """W ~ U S Vh, the r largest singular triplets of W (out, in): U (out, r), S (r,) descending, Vh (r, in).

    Randomized subspace iteration (Halko, Martinsson, Tropp 2011) in float64 with ten passes and a fixed seed:
    equal weights give equal triplets on one machine. Exact to rounding where singular values decay past the r-th; in a
    flat spectrum the triplets span a subspace near the leading one.
    """
    size = min(r + _OVERSAMPLED, *W.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        U, S, V = torch.svd_lowrank(W.detach().double().cpu(), q=size, niter=_ITERATIONS)
    return ThinSVD(U[:, :r], S[:r], V[:, :r].T)

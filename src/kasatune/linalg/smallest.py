"""The r smallest singular triplets of a matrix W (k, n), k <= n, in float64, by the fastest method for its shape."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from kasatune.linalg.direct import direct_triplets
from kasatune.linalg.lanczos import smallest_left_space
from kasatune.linalg.triplets import Triplets, full_triplets, panels, rayleigh_ritz

logger = logging.getLogger("kasatune")

KRYLOV_ROOM = 12
"""Krylov bases grow to about this many times r vectors; if k is smaller, the full SVD is as fast."""

SMALLEST_PIVOT = 1e-11
"""Pivots of an LU factorization are raised to this fraction of the largest one."""


def smallest_triplets(W: Tensor, r: int, layer: str) -> Triplets:
    """W V = U S: the r smallest triplets, verified; from the full SVD, and logged, if no method passes its checks."""
    for method in _methods(W.shape, r):
        triplets = method(W if method is triplets_by_gram else W.double(), r)
        if triplets is not None:
            return triplets
    logger.info(
        "%s, shape %s: no partial decomposition passed its checks for r = %d, using the full SVD",
        *(layer, tuple(W.shape), r),
    )
    return full_triplets(W.double(), r)


def _methods(shape: tuple[int, ...], r: int) -> list[Callable[[Tensor, int], Triplets | None]]:
    """The fastest method for the shape, then one that tolerates ill-conditioned weights."""
    k, n = shape
    by_factors = triplets_by_lu if k == n else triplets_by_lq
    if KRYLOV_ROOM * r > k:
        return [direct_triplets]
    if k <= direct_limit(k == n, r):
        return [direct_triplets, by_factors]
    return [by_factors] if k == n else [triplets_by_gram, by_factors]


def direct_limit(square: bool, r: int) -> int:
    """The k up to which reducing W W^T to a tridiagonal is faster than a factorization with Krylov iterations.

    Straight lines through the shapes where both took the same time on one and two cores of an x86-64 server. The small
    singular values of square weights are better separated and need a third of the iterations.
    """
    return 230 + 19 * r if square else 680 + 32 * r


def triplets_by_gram(W: Tensor, r: int) -> Triplets | None:
    """W W^T = C^T C and Krylov iterations on C^-T: the fastest for k < n, but the condition number is squared.

    W may be of any floating dtype; no full float64 copy of it is made.
    """
    C, info = _gram(W), torch.empty((), dtype=torch.int32, device=W.device)
    # in place: rows of the upper triangle are columns of the lower one, as LAPACK requires
    torch.linalg.cholesky_ex(C.mT, out=(C.mT, info))
    if info.item() != 0:
        return None
    U = smallest_left_space(
        lambda X: torch.linalg.solve_triangular(C.mT, X, upper=False),
        lambda X: torch.linalg.solve_triangular(C, X, upper=True),
        C[0],
        r,
    )
    return rayleigh_ritz(W, U, torch.cat([panel.mT @ U for panel in panels(W)]), r)


def triplets_by_lu(W: Tensor, r: int) -> Triplets | None:
    """Krylov iterations on W^-1 through the LU factors of a square W: any condition number, and singular too."""
    # of W^T, whose columns are contiguous, as LAPACK requires
    LU, pivots, _ = torch.linalg.lu_factor_ex(W.mT)
    diagonal = LU.diagonal()
    largest = diagonal.abs().max()
    if largest.item() == 0:
        return None
    # a null vector is found if its inverse singular value is large; it need not be infinite
    floor = SMALLEST_PIVOT * largest
    diagonal.copy_(torch.where(diagonal.abs() < floor, floor, diagonal))

    def solve(X: Tensor) -> Tensor:
        return torch.linalg.lu_solve(LU, pivots, X, adjoint=True)

    def solve_adjoint(X: Tensor) -> Tensor:
        return torch.linalg.lu_solve(LU, pivots, X)

    U = smallest_left_space(solve, solve_adjoint, W[:, 0], r)
    V = torch.linalg.qr(solve(torch.linalg.qr(U).Q)).Q
    return rayleigh_ritz(W, solve_adjoint(V), V, r)


def triplets_by_lq(W: Tensor, r: int) -> Triplets | None:
    """W^T = Q R, and the triplets of the square R^T by its LU factors: for k < n and an ill-conditioned W."""
    Q, R = torch.linalg.qr(W.mT)
    triplets = triplets_by_lu(R.mT.contiguous(), r)
    return triplets and triplets._replace(V=Q @ triplets.V)


def _gram(W: Tensor) -> Tensor:
    """The upper triangle of W W^T in float64, by block rows: half the work of the full product."""
    k = W.shape[0]
    blocks = max(1, min(16, k // 256))
    edges = [k * i // blocks for i in range(blocks + 1)]
    gram = W.new_zeros(k, k, dtype=torch.float64)
    for panel in panels(W):
        for start, stop in itertools.pairwise(edges):
            gram[start:stop, start:].addmm_(panel[start:stop], panel[start:].mT)
    return gram

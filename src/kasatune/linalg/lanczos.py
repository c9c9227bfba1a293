"""Block Golub-Kahan-Lanczos iteration with an inverse: the left space of the smallest singular values."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kasatune.linalg.eigen import smallest_eigenpairs
from kasatune.linalg.threads import one_blas_thread

GUARD = 4
"""Minimum of vectors iterated beyond r: they give the (r + 1)th value and speed up convergence."""

LANES = 12
"""Block sizes are multiples of this: products of narrow matrices of other widths take up to four times as long."""

BOUND_BY_MEMORY = 4096
"""From this k on, a solve takes as long for 2 * LANES vectors as for LANES: it is bound by reading the triangle."""

SMALL_BASIS = 1600
"""Bases may hold this many vectors, or k / 2 if that is more: convergence comes far earlier, or not at all."""


def smallest_left_space(
    solve: Callable[[Tensor], Tensor], solve_adjoint: Callable[[Tensor], Tensor], like: Tensor, r: int
) -> Tensor:
    """M^T U = V S for the r smallest S of a square M, from M^-1 P = Q B: block Golub-Kahan, fully reorthogonalized.

    M^-1 itself is used, never M^-T M^-1, so that tiny and moderate singular values can be resolved together. The
    iteration starts from a block of at least r + GUARD Gaussian vectors of a fixed seed: independent directions, so
    that no singular vector is missed by chance, whatever its multiplicity, and equal inputs give equal bytes.

    Args:
        solve: X (k, b) to M^-1 X.
        solve_adjoint: X (k, b) to M^-T X.
        like: a vector of length k with the dtype and device of the computation.
        r: number of singular vectors that must converge.

    Returns:
        (k, b), b >= r + GUARD: U in ascending order of S, not normalized; the first r have converged, unless the bases
        were full. They are Ritz vectors with M^-T M^-1 applied once more, which removes the remaining components
        of large S.
    """
    k = len(like)
    lanes = LANES if k < BOUND_BY_MEMORY else 2 * LANES
    b = min(k, -(-(r + GUARD) // lanes) * lanes)
    start = torch.randn(k, b, generator=torch.Generator().manual_seed(0), dtype=like.dtype).to(like.device)
    X = torch.linalg.qr(start).Q
    capacity = max(b, min(k, max(SMALL_BASIS, k // 2)) // b * b)
    P, Q = like.new_empty(capacity + b, k).mT, like.new_empty(capacity, k).mT
    P[:, :b] = X
    columns: list[np.ndarray] = []
    schedule = _Schedule()
    for size in range(b, capacity + 1, b):
        Y, coefficients = _orthogonalized(solve(P[:, size - b : size]), Q[:, : size - b])
        Q[:, size - b : size], R = torch.linalg.qr(Y)
        Z, _ = _orthogonalized(solve_adjoint(Q[:, size - b : size]), P[:, :size])
        P[:, size : size + b], T = torch.linalg.qr(Z)
        columns.append(torch.cat((coefficients, R)).cpu().numpy())
        if schedule.due(size // b) or size == capacity:
            left, inverse_S, right = _largest_triplets(_upper_triangular(columns), b)
            rest = T.cpu().numpy() @ left[-b:]
            excess = np.linalg.norm(rest[:, :r], axis=0).max() / _largest_residual(inverse_S, r)
            if excess <= 1 or size == capacity or not math.isfinite(excess):
                # M^-T Q X = P B^T X + P_next T X_last, and B^T X = right * inverse_S
                weights = np.concatenate((right * inverse_S, rest))
                return P[:, : size + b] @ torch.from_numpy(weights).to(like.device)
            schedule.missed(size // b, excess)
    raise AssertionError("unreachable: the last size is the capacity")


class _Schedule:
    """The steps at which convergence is tested; a test costs as much as one or two steps."""

    def __init__(self) -> None:
        self._next, self._last = 3, (0, math.inf)

    def due(self, step: int) -> bool:
        return step >= self._next

    def missed(self, step: int, excess: float) -> None:
        """Record that the residual at this step is still `excess` times too large."""
        last_step, last_excess = self._last
        gained = math.log(last_excess / excess) / (step - last_step)
        wanted = math.log(excess) / gained if gained > 0 else math.inf
        # convergence accelerates: wait a little less than predicted, and never long
        self._next = step + max(1, int(min(0.9 * wanted, 1 + step / 3)))
        self._last = step, excess


def _orthogonalized(Y: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Y - basis C and C, where C = basis^T Y."""
    coefficients = basis.mT @ Y
    Y = Y - basis @ coefficients
    # once is not enough: the remainder of Y may be far smaller than what was removed
    correction = basis.mT @ Y
    return Y - basis @ correction, coefficients + correction


def _upper_triangular(columns: list[np.ndarray]) -> np.ndarray:
    """One square matrix from blocks of columns, each stored down to its diagonal."""
    size = len(columns[-1])
    B = np.zeros((size, size))
    stop = 0
    for column in columns:
        start, stop = stop, len(column)
        B[:stop, start:stop] = column
    return B


def _largest_triplets(B: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B right = left * values for the m largest values of B, in descending order."""
    with one_blas_thread:
        gram = B.T @ B
        negative, right = smallest_eigenpairs(np.negative(gram, out=gram), m)
        if -negative[-1] > 1e-8 * -negative[0]:
            values = np.sqrt(-negative)
            return B @ right / values, values, right
        left, values, right = np.linalg.svd(B)
        return left[:, :m], values[:m], right[:m].T


def _largest_residual(values: np.ndarray, r: int) -> float:
    """The residual that rotates the space of the first r vectors by 1e-6; without a gap, a small one."""
    gap = values[r - 1] - values[r]
    return 1e-6 * gap if gap > 8e-4 * values[r - 1] else 5e-7 * values[r - 1]

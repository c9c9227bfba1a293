"""The r smallest singular triplets of a small matrix, from eigenvectors of W W^T (tridiagonal reduction)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from kasatune.linalg.eigen import smallest_eigenpairs
from kasatune.linalg.threads import one_blas_thread
from kasatune.linalg.triplets import ORTHOGONALITY_BOUND, Triplets, largest_residual, rayleigh_ritz


def direct_triplets(W: Tensor, r: int) -> Triplets | None:
    """W W^T U = U S^2 and V = W^T U / S: the r smallest triplets of a small W (k, n), k <= n, r < k, float64.

    None if W is too ill-conditioned: W W^T squares the condition number.
    """
    if W.device.type != "cpu":
        return triplets_by_eigh(W, r)
    # numpy, because its calls cost a third of torch's and there are many, on matrices as small as 64 x 64, and
    # because it computes only half of a product that it recognizes as symmetric
    array = W.numpy()
    with one_blas_thread:
        _, vectors = smallest_eigenpairs(array @ array.T, r + 1)
        triplets = _normalized(array, vectors, r)
    if triplets is None:
        U = torch.from_numpy(vectors)
        triplets = rayleigh_ritz(W, U, W.mT @ U, r)
    return triplets


def triplets_by_eigh(W: Tensor, r: int) -> Triplets | None:
    """The same triplets from all eigenvectors of W W^T, for devices that LAPACK does not support."""
    U = torch.linalg.eigh(W @ W.mT).eigenvectors[:, : r + 1]
    return rayleigh_ritz(W, U, W.mT @ U, r)


def _normalized(W: np.ndarray, U: np.ndarray, r: int) -> Triplets | None:
    """V = W^T U / S with S = ||W^T U||: exact, unless S is so small that V is not orthogonal; then None."""
    V = W.T @ U
    S = np.sqrt(np.einsum("ij,ij->j", V, V))
    if S.min() == 0:
        return None
    # equal values may come in any order, but are returned in descending order to the last digit
    order = np.argsort(-S)
    S_next, order = float(S[order[0]]), order[1:]
    U, S = U[:, order], S[order]
    V = V[:, order] / S
    defect = max(_defect(U), _defect(V))
    if defect < ORTHOGONALITY_BOUND and _norm(W @ V - U * S) <= largest_residual(S_next, float(S[0]), _norm(W)):
        return Triplets(torch.from_numpy(U), torch.from_numpy(S), torch.from_numpy(V))
    return None


def _defect(Q: np.ndarray) -> float:
    """||Q^T Q - I||_F."""
    product = Q.T @ Q
    product.flat[:: len(product) + 1] -= 1
    return _norm(product)


def _norm(X: np.ndarray) -> float:
    """||X||_F, in a third of the time of numpy's own function on a small matrix."""
    entries = X.ravel(order="K")  # in memory order: np.vdot copies a transposed matrix
    return math.sqrt(np.vdot(entries, entries))

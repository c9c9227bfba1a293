from __future__ import annotations

import functools
from typing import Any

import numpy as np
import scipy.linalg

EPS = np.finfo(np.float64).eps

lapack: Any = scipy.linalg.lapack  # its functions are generated when it is built, out of sight of type checkers


def smallest_eigenpairs(G: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    """G x = lambda x for the m smallest lambda of a symmetric float64 G (k, k), k >= 2, given by its upper triangle.

    Householder reduction to a tridiagonal T, the eigenvalues of T, inverse iteration for m of its eigenvectors, and
    back: far cheaper than all k eigenvectors. G is overwritten. To be called within `one_blas_thread`.

    Returns:
        lambda (m,) in ascending order, x (k, m) with orthonormal columns.
    """
    k = len(G)
    # LAPACK reads columns where numpy writes rows: the upper triangle is its lower one, and nothing is copied
    reflectors, diagonal, off_diagonal, tau, _ = lapack.dsytrd(G.T, lower=1, overwrite_a=1, lwork=64 * k)
    scale = max(np.abs(diagonal).max(), np.abs(off_diagonal).max())
    if scale == 0:
        return np.zeros(m), np.eye(k, m)
    diagonal, off_diagonal = diagonal / scale, off_diagonal / scale  # dstein has absolute thresholds
    # an entry below rounding is as good as zero; lifted to rounding it keeps T one block, as dstein is told it is
    negligible = np.abs(off_diagonal) < EPS
    if negligible.any():
        off_diagonal[negligible] = EPS
    eigenvalues, _ = lapack.dsterf(diagonal, off_diagonal)
    vectors, _ = lapack.dstein(diagonal, off_diagonal, eigenvalues[:m], *_one_block(k))
    vectors[1:], _, _ = lapack.dormqr("L", "N", reflectors[1:, :-1], tau, vectors[1:], 64 * m)
    return scale * eigenvalues[:m], vectors


@functools.cache
def _one_block(k: int) -> tuple[np.ndarray, np.ndarray]:
    """To which block each eigenvalue belongs, and where each block ends: one of size k."""
    return np.ones(k, dtype=np.int32), np.full(k, k, dtype=np.int32)

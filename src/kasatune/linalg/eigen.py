"""The m smallest eigenpairs of a symmetric matrix, by LAPACK: tridiagonal reduction and inverse iteration."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import scipy.linalg

EPS = np.finfo(np.float64).eps

lapack: Any = scipy.linalg.lapack  # its functions are generated at build time, so type checkers do not see them


def smallest_eigenpairs(G: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    """G x = lambda x for the m smallest lambda of a symmetric float64 G (k, k), k >= 2, given by its upper triangle.

    Householder reduction to a tridiagonal T, the eigenvalues of T, inverse iteration for m of its eigenvectors, and
    the back-transformation: far cheaper than all k eigenvectors. G is overwritten. Call it within `one_blas_thread`.

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
    # an entry below rounding counts as zero; raised to rounding it keeps T one block, which dstein is called with
    negligible = np.abs(off_diagonal) < EPS
    if negligible.any():
        off_diagonal[negligible] = EPS
    eigenvalues, _ = lapack.dsterf(diagonal, off_diagonal)
    vectors, _ = lapack.dstein(diagonal, off_diagonal, eigenvalues[:m], *_one_block(k))
    vectors[1:], _, _ = lapack.dormqr("L", "N", reflectors[1:, :-1], tau, vectors[1:], 64 * m)
    return scale * eigenvalues[:m], vectors


@functools.cache
def _one_block(k: int) -> tuple[np.ndarray, np.ndarray]:
    """The block of each eigenvalue, and the end of each block, for one block of size k."""
    return np.ones(k, dtype=np.int32), np.full(k, k, dtype=np.int32)

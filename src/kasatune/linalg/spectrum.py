"""Spectra of weights and updates: singular values, energy shares, effective rank, SVD of products, alignment."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_SMALLEST_SHARE = 1e-4  # of the largest singular value: (S_1 / S_k)^2 eps / 2 is 1e-8 there


class ThinSVD(NamedTuple):
    """Singular triplets U (out, q), S (q,) descending, Vh (q, in)."""

    U: Tensor
    S: Tensor
    Vh: Tensor


def singular_values(W: Tensor) -> Tensor:
    """All min(out, in) singular values of W (out, in), descending, float64, to eight digits or more.

    S_i = sqrt(lambda_i(W W^T)) in float64 whatever W's dtype, or W^T W if that is smaller: the error of an
    eigenvalue is about eps S_1^2, hence the relative error of S_i is eps / 2 (S_1 / S_i)^2. If the smallest value is
    too small for that, or W holds NaN or infinity, the SVD is used.
    """
    W = W.detach().double()
    wide = W if W.shape[0] <= W.shape[1] else W.mT
    if wide.numel() and bool(torch.isfinite(wide).all()):
        squares = torch.linalg.eigvalsh(wide @ wide.mT).flip(0)
        if bool(squares[-1] > _SMALLEST_SHARE**2 * squares[0]):
            return squares.sqrt()
    return torch.linalg.svdvals(W)


def energy_share(S: Tensor, first: int, count: int) -> float:
    """sum_{i = first}^{first + count - 1} S_i^2 / sum_i S_i^2: the share of ||W||_F^2 in those triplets.

    0 for a weight that is zero.
    """
    energy = S.detach().double().square()
    total = energy.sum()
    return float(energy[first : first + count].sum() / total) if total > 0 else 0.0


def effective_rank(S: Tensor) -> float:
    """exp(-sum p_i log p_i), p = S / sum S: the effective rank of Roy and Vetterli (2007); 0 for the zero matrix."""
    S = S.detach().double()
    total = S.sum()
    return float(torch.special.entr(S / total).sum().exp()) if total > 0 else 0.0


def product_svd(left: Tensor, right: Tensor) -> ThinSVD:
    """The thin SVD of left @ right, (out, q) times (q, in), without forming the (out, in) product.

    left = Q_l R_l, right^T = Q_r R_r, R_l R_r^T = U S Vh; q <= min(out, in). Computed in float64; returned in float32,
    or float64 where a factor is float64.
    """
    dtype = torch.promote_types(torch.promote_types(left.dtype, right.dtype), torch.float32)
    Q_left, R_left = torch.linalg.qr(left.detach().double())
    Q_right, R_right = torch.linalg.qr(right.detach().double().mT)
    U, S, Vh = torch.linalg.svd(R_left @ R_right.mT, full_matrices=False)
    return ThinSVD((Q_left @ U).to(dtype), S.to(dtype), (Vh @ Q_right.mT).to(dtype))


def subspace_alignment(X: Tensor, Y: Tensor) -> float:
    """||Q_X^T Q_Y||_F^2 / min(p, q): the mean squared cosine of the principal angles between two column spaces.

    X (n, p) and Y (n, q) need not be orthonormal, but must have full column rank. 1: one space contains the other; 0:
    they are orthogonal.
    """
    Q_X, _ = torch.linalg.qr(X.detach().double())
    Q_Y, _ = torch.linalg.qr(Y.detach().double())
    return float((Q_X.mT @ Q_Y).square().sum() / min(X.shape[1], Y.shape[1]))

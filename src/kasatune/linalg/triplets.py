"""Singular triplets of a wide matrix: the full SVD, Rayleigh-Ritz, and the required accuracy of a tail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ORTHOGONALITY_BOUND = 1e-8

PANEL = 512
"""Columns of a weight in float64 at once: a full copy would take twice the memory of a float32 weight."""


class Triplets(NamedTuple):
    """Singular triplets of W (k, n): U (k, r), S (r,) descending, V (n, r), so that W V = U S and W^T U = V S."""

    U: Tensor
    S: Tensor
    V: Tensor


def panels(W: Tensor) -> Iterator[Tensor]:
    """The columns of W (k, n) in float64, PANEL of them at a time."""
    for columns in W.split(PANEL, dim=1):
        yield columns.double()


def full_triplets(W: Tensor, r: int) -> Triplets:
    """The r smallest triplets from the full SVD of W: the reference, and the fallback."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return Triplets(U[:, -r:], S[-r:], Vh[-r:].mT)


def largest_residual(S_next: float, S_r: float, norm: float) -> float:
    """The largest admissible ||W V - U S|| and ||W^T U - V S||, for a tail with largest value S_r and S_next above it.

    A residual of norm rho rotates the tail's singular spaces by rho / (S_next - S_r) at most (Wedin): the component is
    then accurate to 4e-5. If that gap is below 1e-3 of S_next, the tail is not unique, and a small residual is all that
    can be required. The residual of the full float64 SVD, a few eps ||W||_F (`norm`), is always accepted.
    """
    gap = S_next - S_r
    return max(2e-5 * gap if gap > 8e-4 * S_next else 1e-6 * S_r, 1e-15 * norm)


def rayleigh_ritz(W: Tensor, U: Tensor, V: Tensor, r: int) -> Triplets | None:
    """The r smallest triplets of W within the spans of U (k, q) and V (n, q), q > r; None if inaccurate.

    W may be of any floating dtype, U and V are float64. Their error is of second order in that of the spans. None
    is returned if the residuals or the orthogonality are insufficient. The caller must ensure that no smaller triplet
    lies outside the spans.
    """
    if not torch.isfinite(U.sum() + V.sum()):
        return None
    U, V = torch.linalg.qr(U).Q, torch.linalg.qr(V).Q
    WV, WtU, norm = _products(W, U, V)
    P, S, Qh = torch.linalg.svd(U.mT @ WV)
    P, Q, S, S_next = P[:, -r:], Qh[-r:].mT, S[-r:], S[-r - 1]
    U, V, WV, WtU = U @ P, V @ Q, WV @ Q, WtU @ P
    eye = torch.eye(r, device=U.device, dtype=U.dtype)
    measures = (U.mT @ U - eye, V.mT @ V - eye, WV - U * S, WtU - V * S, S_next, S[0], norm)
    defect_U, defect_V, residual_U, residual_V, S_next, S_r, norm = torch.stack(
        [torch.linalg.vector_norm(measure) for measure in measures]
    ).tolist()
    orthonormal = max(defect_U, defect_V) < ORTHOGONALITY_BOUND
    if orthonormal and max(residual_U, residual_V) <= largest_residual(S_next, S_r, norm):
        return Triplets(U, S, V)
    return None


def _products(W: Tensor, U: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W V, W^T U and the norm of each panel of W, reading W once."""
    WV, WtU, norms = torch.zeros_like(U), [], []
    for panel, rows in zip(panels(W), V.split(PANEL), strict=True):
        WV.addmm_(panel, rows)
        WtU.append(panel.mT @ U)
        norms.append(torch.linalg.vector_norm(panel))
    return WV, torch.cat(WtU), torch.stack(norms)

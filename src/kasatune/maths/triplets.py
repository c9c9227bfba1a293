from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ORTHOGONALITY_BOUND = 1e-8


class Triplets(NamedTuple):
    """Singular triplets of W (k, n): U (k, r), S (r,) descending, V (n, r), so that W V = U S and W^T U = V S."""

    U: Tensor
    S: Tensor
    V: Tensor


def full_triplets(W: Tensor, r: int) -> Triplets:
    """The last r of all the triplets of W: the reference, and the last resort."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return Triplets(U[:, -r:], S[-r:], Vh[-r:].mT)


def largest_residual(S_next: float, S_r: float, norm: float) -> float:
    """How large ||W V - U S|| and ||W^T U - V S|| may be for a tail whose largest value is S_r, the next above S_next.

    A residual of norm rho turns the tail's singular spaces by rho / (S_next - S_r) at most (Wedin): the component is
    then right to 4e-5. Where that gap is below 1e-3 of S_next no single tail is right, and a small residual is all
    that can be asked. What the full SVD in float64 leaves, a few eps ||W||_F (`norm`), is always good enough.
    """
    gap = S_next - S_r
    return max(2e-5 * gap if gap > 8e-4 * S_next else 1e-6 * S_r, 1e-15 * norm)


def rayleigh_ritz(W: Tensor, U: Tensor, V: Tensor, r: int) -> Triplets | None:
    """The r smallest triplets of W within the spans of U (k, q) and V (n, q), q > r, if they are the tail of W.

    Their error is of second order in that of the spans. None if the residuals or the orthogonality are not good
    enough; that nothing smaller lies outside the spans is for the caller to know.
    """
    if not torch.isfinite(U.sum() + V.sum()):
        return None
    U, V = torch.linalg.qr(U).Q, torch.linalg.qr(V).Q
    WV, WtU = W @ V, W.mT @ U
    P, S, Qh = torch.linalg.svd(U.mT @ WV)
    P, Q, S, S_next = P[:, -r:], Qh[-r:].mT, S[-r:], S[-r - 1]
    U, V, WV, WtU = U @ P, V @ Q, WV @ Q, WtU @ P
    eye = torch.eye(r, device=W.device, dtype=W.dtype)
    measures = (U.mT @ U - eye, V.mT @ V - eye, WV - U * S, WtU - V * S, S_next, S[0], W)
    defect_U, defect_V, residual_U, residual_V, S_next, S_r, norm = torch.stack(
        [torch.linalg.vector_norm(measure) for measure in measures]
    ).tolist()
    orthonormal = max(defect_U, defect_V) < ORTHOGONALITY_BOUND
    if orthonormal and max(residual_U, residual_V) <= largest_residual(S_next, S_r, norm):
        return Triplets(U, S, V)
    return None

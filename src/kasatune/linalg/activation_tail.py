"""T = argmin E||T x||^2 over components with rank(W - T) = k - d: the part of a weight that activations use least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kasatune.errors import ModelError
from kasatune.linalg.eigen import smallest_eigenpairs
from kasatune.linalg.spectrum import product_svd
from kasatune.linalg.tail import TailSVD
from kasatune.wording import counted

FEW_TOKENS = 4
"""With fewer than this many tokens per dimension k, the second moments are close to singular."""

RIDGE = 1e-3
RIDGE_FEW_TOKENS = 0.1

Side = Literal["outputs", "inputs"]


@dataclass(frozen=True)
class ActivationMoments:
    """Second moments of the inputs or outputs of one linear layer on calibration tokens.

    Attributes:
        side: "outputs" where out <= in, otherwise "inputs"; see `side_of`.
        moments: E[y y^T] with y = W x without bias, (out, out), or E[x x^T], (in, in); float64, symmetric.
        mean_square: E||x||^2 / in, the mean of the diagonal of E[x x^T].
        tokens: number of tokens that the means are taken over.
    """

    side: Side
    moments: Tensor
    mean_square: float
    tokens: int


@dataclass(frozen=True)
class ActivationTail:
    """A component T of rank d, with its share of the layer's output on the calibration tokens.

    Attributes:
        tail: singular triplets of T: U (out, d), S (d,) descending, Vh (d, in), float32 or float64.
        cut: the d-th smallest eigenvalue of the ridged matrix and the one above it. Where they are close, another
            sample of activations may choose another component.
        share: E||T x||^2 / E||W x||^2 on the calibration tokens; 0 where the layer's output is zero.
    """

    tail: TailSVD
    cut: tuple[float, float]
    share: float


def side_of(shape: tuple[int, int]) -> Side:
    """The side of a weight (out, in) on which `activation_tail` needs moments: the smaller one."""
    return "outputs" if shape[0] <= shape[1] else "inputs"


def activation_tail(W: Tensor, activations: ActivationMoments, d: int, *, name: str = "weight") -> ActivationTail:
    """The component T of rank d with the smallest E||T x||^2 whose removal leaves W - T with rank k - d.

    With C = E[x x^T] and the thin SVD W C^(1/2) = U S Vh, T C^(1/2) = U_d S_d Vh_d holds the d last triplets
    (Eckart-Young), k = min(out, in).

    - out <= in: T = U_d U_d^T W, where U_d are the eigenvectors of W C W^T = E[y y^T] with the d smallest eigenvalues.
      C itself is not needed.
    - out > in: those eigenvectors would span the left null space of W and T would be 0. With the Cholesky factor
      C = L L^T and Q the eigenvectors of L^T W^T W L with the d smallest eigenvalues, T = W L Q Q^T L^(-1).

    C is replaced by C + lambda mean(diag C) I. lambda is 1e-3, and 0.1 with fewer than 4 tokens per dimension k: the
    sample then has a null space in which the choice would be arbitrary. Within it the ridge orders by W W^T, which is
    the choice by magnitude.

    Args:
        W: weight (out, in), of any floating dtype. Not modified.
        activations: second moments on the side that `side_of(W.shape)` names.
        d: number of triplets, 1 <= d < k.
        name: of the layer, for error messages.

    Raises:
        ModelError: d is out of range, the moments are of another side or shape, or a value is not finite.
    """
    rows, columns = W.shape
    k = min(rows, columns)
    _check(W, activations, d, name)
    dtype = torch.float64 if W.dtype == torch.float64 else torch.float32
    wide = W.detach().to("cpu", torch.float64)
    ridge = (RIDGE_FEW_TOKENS if activations.tokens < FEW_TOKENS * k else RIDGE) * activations.mean_square
    moments = activations.moments.to("cpu", torch.float64)
    if activations.side == "outputs":
        eigenvalues, U = _smallest(moments + ridge * (wide @ wide.mT), d + 1)
        U = U[:, :d]
        tail = product_svd(U, U.mT @ wide)
        dropped, total = torch.sum(U * (moments @ U)), moments.trace()
    else:
        L = torch.linalg.cholesky(moments + ridge * torch.eye(columns, dtype=torch.float64))
        WL = wide @ L
        eigenvalues, Q = _smallest(WL.mT @ WL, d + 1)
        Q = Q[:, :d]
        tail = product_svd(WL @ Q, torch.linalg.solve_triangular(L.mT, Q, upper=True).mT)
        T_right = tail.S.unsqueeze(-1) * tail.Vh
        dropped = torch.sum(T_right * (T_right @ moments))
        total = torch.sum(wide * (wide @ moments))
    share = float(dropped / total) if total > 0 else 0.0
    triplets = TailSVD(*(part.to(W.device, dtype).contiguous() for part in tail))
    return ActivationTail(triplets, (float(eigenvalues[d - 1]), float(eigenvalues[d])), max(share, 0.0))


def _smallest(G: Tensor, m: int) -> tuple[np.ndarray, Tensor]:
    """The m smallest eigenvalues of symmetric G (k, k), ascending, and their eigenvectors (k, m)."""
    eigenvalues, vectors = smallest_eigenpairs(G.numpy().copy(), m)
    return eigenvalues, torch.from_numpy(np.ascontiguousarray(vectors))


def _check(W: Tensor, activations: ActivationMoments, d: int, name: str) -> None:
    k = min(W.shape)
    if not 1 <= d < k:
        raise ModelError(
            f"layer {name!r} of shape {tuple(W.shape)} cannot drop d = {counted(d, 'triplet')}, d must lie "
            f"between 1 and {k - 1}: "
            "choose a smaller `drop`, or leave the layer out of target_modules"
        )
    if activations.side != side_of((W.shape[0], W.shape[1])) or activations.moments.shape != (k, k):
        raise ModelError(
            f"layer {name!r} of shape {tuple(W.shape)} needs activation moments of its "
            f"{side_of((W.shape[0], W.shape[1]))} ({k} x {k}), got {activations.side} of shape "
            f"{tuple(activations.moments.shape)}: calibrate on this base model"
        )
    if not bool(torch.isfinite(activations.moments).all()) or not bool(torch.isfinite(W).all()):
        raise ModelError(
            f"layer {name!r}: the weight or its activations hold NaN or infinite values: check the checkpoint and the "
            "calibration text, or calibrate in float32"
        )

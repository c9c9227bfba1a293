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


@dataclass(frozen=True)
class WhitenedTriplets:
    """Rank-1 components T_i = left_i right_i of a weight: its triplets in the whitened basis, smallest first.

    Attributes:
        left: (out, m), float32 or float64.
        right: (m, in), of the same dtype.
        energy: E||T_i x||^2 on the calibration tokens, (m,), float64.
        total: E||W x||^2.
    """

    left: Tensor
    right: Tensor
    energy: Tensor
    total: float


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
    _check(W, activations, d, name)
    basis = _Basis.of(W, activations)
    eigenvalues, vectors = smallest_eigenpairs(basis.G.numpy().copy(), d + 1)
    Q = torch.from_numpy(np.ascontiguousarray(vectors))[:, :d]
    left, right = basis.mapped_back(Q)
    tail = product_svd(left, right)
    dropped = float(basis.energies(Q, tail.S.unsqueeze(-1) * tail.Vh).sum())
    share = dropped / basis.total if basis.total > 0 else 0.0
    triplets = TailSVD(*(part.to(W.device, _dtype(W)).contiguous() for part in tail))
    return ActivationTail(triplets, (float(eigenvalues[d - 1]), float(eigenvalues[d])), max(share, 0.0))


def weakest_triplets(
    W: Tensor, activations: ActivationMoments, share: float, *, name: str = "weight"
) -> WhitenedTriplets:
    """The last triplets of W C^(1/2), which together carry at most `share` of E||W x||^2: T_i C^(1/2) = u_i s_i v_i^T.

    They are those among which `activation_tail` chooses, with the same ridge, and at most k - 1; none for a layer whose
    output is zero.

    Args:
        W: weight (out, in), of any floating dtype. Not modified.
        activations: second moments on the side that `side_of(W.shape)` names.
        share: between 0 and 1.
        name: of the layer, for error messages.

    Raises:
        ModelError: the moments are of another side or shape, or a value is not finite.
    """
    _check(W, activations, None, name)
    basis = _Basis.of(W, activations)
    _, vectors = torch.linalg.eigh(basis.G)
    left, right = basis.mapped_back(vectors)
    energy = basis.energies(vectors, left.norm(dim=0).unsqueeze(-1) * right).sum(1).clamp_min(0.0)
    m = int((energy.cumsum(0) <= share * basis.total).sum()) if basis.total > 0 else 0
    m = min(m, len(energy) - 1)
    dtype = _dtype(W)
    return WhitenedTriplets(left[:, :m].to(W.device, dtype), right[:m].to(W.device, dtype), energy[:m], basis.total)


@dataclass(frozen=True)
class _Basis:
    """The symmetric matrix whose eigenvectors choose a component, with the ridge, and what maps them back.

    Attributes:
        W: (out, in), float64 on the CPU.
        moments: as measured, without the ridge, float64 on the CPU.
        L: Cholesky factor of C, (in, in); None on the side of the outputs.
        WL: W L, (out, in); None on the side of the outputs.
        G: W C W^T (out, out), or L^T W^T W L (in, in).
        total: E||W x||^2, without the ridge.
    """

    W: Tensor
    moments: Tensor
    L: Tensor | None
    WL: Tensor | None
    G: Tensor
    total: float

    @classmethod
    def of(cls, W: Tensor, activations: ActivationMoments) -> _Basis:
        wide = W.detach().to("cpu", torch.float64)
        k, columns = min(wide.shape), wide.shape[1]
        ridge = (RIDGE_FEW_TOKENS if activations.tokens < FEW_TOKENS * k else RIDGE) * activations.mean_square
        moments = activations.moments.to("cpu", torch.float64)
        if activations.side == "outputs":
            return cls(wide, moments, None, None, moments + ridge * (wide @ wide.mT), float(moments.trace()))
        L = torch.linalg.cholesky(moments + ridge * torch.eye(columns, dtype=torch.float64))
        WL = wide @ L
        return cls(wide, moments, L, WL, WL.mT @ WL, float(torch.sum(wide * (wide @ moments))))

    def mapped_back(self, Q: Tensor) -> tuple[Tensor, Tensor]:
        """Factors (out, m) and (m, in) whose product is U U^T W, or W L Q Q^T L^(-1), for eigenvectors Q (k, m)."""
        if self.L is None or self.WL is None:
            return Q, Q.mT @ self.W
        return self.WL @ Q, torch.linalg.solve_triangular(self.L.mT, Q, upper=True).mT

    def energies(self, Q: Tensor, T: Tensor) -> Tensor:
        """Terms whose sum is E||T x||^2, those of component i in row i.

        Args:
            Q: eigenvectors (k, m), read on the side of the outputs.
            T: (m, in) with T^T T the component's own, read on the side of the inputs.
        """
        return (Q * (self.moments @ Q)).mT if self.L is None else T * (T @ self.moments)


def _dtype(W: Tensor) -> torch.dtype:
    return torch.float64 if W.dtype == torch.float64 else torch.float32


def _check(W: Tensor, activations: ActivationMoments, d: int | None, name: str) -> None:
    k = min(W.shape)
    if d is not None and not 1 <= d < k:
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

"""The paper's equations written literally, in float64: a slow reference for the tests of `kasa.functional`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kasatune.kasa.functional import Factors


def kept_count(W: Tensor, r: int, convention: str) -> int:
    """The number of leading singular triplets kept: min(out, in) - r in the paper, min(in - r, out) in the code."""
    out_features, in_features = W.shape
    if convention == "paper":
        return min(out_features, in_features) - r
    return min(in_features - r, out_features)


def world_weight(W: Tensor, r: int, convention: str) -> Tensor:
    """W_world = sum_{i <= kept} u_i s_i v_i^T: the weight with its smallest singular triplets dropped."""
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    world = torch.zeros_like(W, dtype=torch.float64)
    for i in range(kept_count(W, r, convention)):
        world += S[i] * torch.outer(U[:, i], Vh[i])
    return world


def core_matrix(sigma: Tensor) -> Tensor:
    """dS, an r x r matrix: diag(sigma), or sigma itself when it is dense."""
    return torch.diag(sigma.double()) if sigma.ndim == 1 else sigma.double()


def update(factors: Factors, scaling: float) -> Tensor:
    """ΔW = eta dU dS dV^T."""
    return scaling * factors.B.double() @ core_matrix(factors.sigma) @ factors.A.double()


def adapted_weight(W: Tensor, factors: Factors, scaling: float, convention: str) -> Tensor:
    """W' = W_world + eta dU dS dV^T."""
    return world_weight(W, len(factors.sigma), convention) + update(factors, scaling)


def sigma_penalty(factors: Factors) -> Tensor:
    """L2(dS) = sum of dS_ij^2 (Eq. 10), which is sum_j sigma_j^2 for a diagonal core."""
    return (core_matrix(factors.sigma) ** 2).sum()


def orthogonality_penalty(factors: Factors, convention: str) -> Tensor:
    """L3 = ||dU^T dU - I_r||_F + ||dV^T dV - I_r||_F (Eq. 11); the code uses dU dU^T - I_out and dV dV^T - I_in."""
    dU, dVt = factors.B.double(), factors.A.double()
    r_grams, n_grams = (dU.T @ dU, dVt @ dVt.T), (dU @ dU.T, dVt.T @ dVt)
    grams = r_grams if convention == "paper" else n_grams
    return sum(
        (((gram - torch.eye(len(gram), dtype=torch.float64)) ** 2).sum().sqrt() for gram in grams),
        torch.zeros((), dtype=torch.float64),
    )


def penalty(layers: Sequence[Factors], beta: float, gamma: float, convention: str) -> Tensor:
    """L - L1 = beta L2 + gamma L3 (Eq. 12): summed over layers in the paper, the mean over layers in the code."""
    per_layer = torch.stack(
        [beta * sigma_penalty(layer) + gamma * orthogonality_penalty(layer, convention) for layer in layers]
    )
    return per_layer.sum() if convention == "paper" else per_layer.mean()


def effective_rank(S: Tensor) -> Tensor:
    """exp(H(p)), p = S / sum S."""
    p = S.double()[S > 0] / S.double().sum()
    return torch.exp(-(p * torch.log(p)).sum())

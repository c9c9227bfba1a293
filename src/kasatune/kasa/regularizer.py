from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kasatune.kasa.convention import Convention, check_convention
from kasatune.kasa.update import Factors


class PenaltyTerms(NamedTuple):
    """The two regularisers, unweighted and reduced over layers: scalars, sigma and orthogonality."""

    sigma: Tensor
    orthogonality: Tensor


def penalty_terms(layers: Sequence[Factors], convention: Convention) -> PenaltyTerms:
    """L2 = sum sigma^2 and L3 = ||A A^T - I||_F + ||B^T B - I||_F, the paper's Eq. 10 and 11, over layers.

    `paper`: r x r Grams, summed over layers. `authors`: the norms are those of the n x n Grams, A^T A - I_in and
    B B^T - I_out, through the identity sqrt(||F F^T - I_r||^2 + n - r), and both terms are means over layers.

    Computed in float32, or float64 where the factors are float64; differentiable, with gradient zero (not NaN) where
    a norm is zero. Layers of equal shape share their kernels. The scalars live on the first layer's device; no layers
    give zeros.

    Raises:
        InputError: the convention is neither "paper" nor "authors".
    """
    check_convention(convention)
    if not layers:
        return PenaltyTerms(torch.zeros(()), torch.zeros(()))
    device = layers[0].A.device
    sigma_parts, orthogonality_parts = [], []
    for _, A, sigma, B in _groups(layers):
        norm_A, norm_B = _defect(A, convention)[1], _defect(B.mT, convention)[1]
        sigma_parts.append(sigma.square().sum().to(device))
        orthogonality_parts.append((norm_A.sum() + norm_B.sum()).to(device))
    share = _share(layers, convention)
    return PenaltyTerms(share * torch.stack(sigma_parts).sum(), share * torch.stack(orthogonality_parts).sum())


@torch.no_grad()
def penalty_gradients(layers: Sequence[Factors], beta: float, gamma: float, convention: Convention) -> list[Factors]:
    """The gradient of beta * sigma + gamma * orthogonality of `penalty_terms`, in closed form.

    d/dsigma = 2 beta sigma; d/dA = 2 gamma (A A^T - I) A / norm_A; d/dB = 2 gamma B (B^T B - I) / norm_B, the norms
    as the convention has them; zero where a norm is zero; all divided by the number of layers under `authors`.

    One Factors per layer, in the order, shape and dtype of the layers; computed in float32, or float64 for float64.

    Raises:
        InputError: the convention is neither "paper" nor "authors".
    """
    check_convention(convention)
    gradients: dict[int, Factors] = {}
    share = _share(layers, convention)
    for indices, A, sigma, B in _groups(layers):
        grad_A = share * gamma * _norm_gradient(A, convention)
        grad_B = share * gamma * _norm_gradient(B.mT, convention).mT
        grad_sigma = (2 * share * beta) * sigma
        for index, stacked in zip(indices, zip(grad_A, grad_sigma, grad_B, strict=True), strict=True):
            gradients[index] = Factors(*(g.to(f.dtype) for g, f in zip(stacked, layers[index], strict=True)))
    return [gradients[index] for index in range(len(layers))]


def orthogonality_norms(factors: Factors, convention: Convention) -> tuple[Tensor, Tensor]:
    """||A A^T - I|| and ||B^T B - I|| of one layer, as the convention has them: how far from orthonormal it is."""
    check_convention(convention)
    [(_, A, _, B)] = _groups([factors])
    return _defect(A, convention)[1][0], _defect(B.mT, convention)[1][0]


def _groups(layers: Sequence[Factors]) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
    """Layers of equal shapes, dtype and device, stacked along a new first dimension: (their indices, A, sigma, B)."""
    groups: dict[tuple, list[int]] = {}
    for index, (A, sigma, B) in enumerate(layers):
        groups.setdefault((A.shape, sigma.shape, B.shape, A.dtype, sigma.dtype, B.dtype, A.device), []).append(index)
    for indices in groups.values():
        A, sigma, B = (
            torch.stack(tensors).to(torch.promote_types(tensors[0].dtype, torch.float32))
            for tensors in zip(*(layers[index] for index in indices), strict=True)
        )
        yield indices, A, sigma, B


def _defect(F: Tensor, convention: Convention) -> tuple[Tensor, Tensor]:
    """F F^T - I_r of every F (g, r, n), and its norm as the convention has it, shape (g,)."""
    r, n = F.shape[-2:]
    defect = F @ F.mT - torch.eye(r, device=F.device, dtype=F.dtype)
    if convention == "authors" and n < r:
        # here n - r is negative and the identity would cancel; the n x n Gram is the smaller one anyway
        return defect, _defect(F.mT, "paper")[1]
    norm = torch.linalg.vector_norm(defect, dim=(-2, -1))
    if convention == "authors" and n > r:
        norm = torch.sqrt(norm.square() + (n - r))
    return defect, norm


def _norm_gradient(F: Tensor, convention: Convention) -> Tensor:
    """2 (F F^T - I) F / norm, zero where the norm is zero; both conventions differ in the norm alone."""
    defect, norm = _defect(F, convention)
    weight = torch.where(norm > 0, 2 / norm, 0.0)
    return (weight[:, None, None] * defect) @ F


def _share(layers: Sequence[Factors], convention: Convention) -> float:
    """The weight of one layer in the reduction: a sum in the paper, a mean in the authors' code."""
    return 1.0 if convention == "paper" or not layers else 1 / len(layers)

"""The equations of KaSA (arXiv 2412.06071) as functions of tensors: truncation, update, initialization, penalty.

    W = sum_{i <= k} u_i s_i v_i^T,  k = min(out, in)
    W_world = sum_{i <= k - d} u_i s_i v_i^T            truncation: the d smallest singular triplets are dropped
    W' = W_world + s dU dS dV^T                         s = alpha / r;  dU = B, dS = diag(sigma), dV^T = A
    L2 = sum_j sigma_j^2                                Eq. 10
    L3 = ||dU^T dU - I_r||_F + ||dV^T dV - I_r||_F      Eq. 11
    L = L1 + beta L2 + gamma L3                         Eq. 12, L1 the task loss

The released code of the authors reads truncation and L3 differently: `convention` "paper" or "authors" selects the
reading (docs/deviations.md). `linalg.tail_svd` computes the dropped triplets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kasatune.errors import InputError

Convention = Literal["paper", "authors"]
Core = Literal["diagonal", "dense"]


class Factors(NamedTuple):
    """The trainable factors of one layer: A (r, in), sigma (r,) or (r, r), B (out, r)."""

    A: Tensor
    sigma: Tensor
    B: Tensor


class PenaltyTerms(NamedTuple):
    """L2 (`sigma`) and L3 (`orthogonality`), unweighted and reduced over layers: two scalars."""

    sigma: Tensor
    orthogonality: Tensor


def drop_count(out_features: int, in_features: int, r: int, convention: Convention) -> int:
    """d: how many singular triplets truncation drops from a weight of shape (out_features, in_features).

    `paper` drops the r smallest of k = min(out, in). `authors` keeps the triplets before index in - r, as the released
    code does: d = max(0, k - (in - r)), hence d = 0 for a weight with out <= in - r.

    Raises:
        InputError: the convention is neither "paper" nor "authors".
    """
    check_convention(convention)
    if convention == "paper":
        return r
    return max(0, min(out_features, in_features) - (in_features - r))


def scaling(lora_alpha: float, r: int, *, use_rslora: bool) -> float:
    """The scaling s = alpha / r, or alpha / sqrt(r) with rank stabilization (rsLoRA)."""
    return lora_alpha / math.sqrt(r) if use_rslora else lora_alpha / r


def update(factors: Factors, scaling: float) -> Tensor:
    """ΔW = s B diag(sigma) A, or s B sigma A for a dense core: the weight update, shape (out, in)."""
    A, sigma, B = factors
    core_A = sigma.unsqueeze(-1) * A if sigma.ndim == 1 else sigma @ A
    return scaling * (B @ core_A)


def initial_factors(
    out_features: int,
    in_features: int,
    r: int,
    core: Core,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Factors:
    """A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0, sigma ~ N(0, 1): the factors before training, so that ΔW = 0.

    A has the distribution of kaiming_uniform(a=sqrt 5), as in LoRA. A dense core starts as diag(sigma).

    A is drawn first, then sigma, both in float32 on the generator's device (the CPU without one), and then moved:
    one seed gives the same factors on every device and, up to rounding, in every dtype. On the meta device nothing is
    drawn.

    Args:
        out_features: rows of the weight.
        in_features: columns of the weight.
        r: rank of the adapter.
        core: "diagonal", sigma of shape (r,), or "dense", sigma of shape (r, r).
        generator: source of the random numbers; None for PyTorch's global generator.
        device: of all three factors.
        dtype: of all three factors.

    Raises:
        InputError: the core is neither "diagonal" nor "dense".
    """
    if core not in ("diagonal", "dense"):
        raise InputError(f"core is {core!r}, must be 'diagonal' or 'dense': choose one of the two")
    B = torch.zeros(out_features, r, device=device, dtype=dtype)
    if B.is_meta:
        sigma_shape = (r,) if core == "diagonal" else (r, r)
        return Factors(B.new_empty(r, in_features), B.new_empty(sigma_shape), B)
    source = generator.device if generator is not None else torch.device("cpu")
    bound = 1 / math.sqrt(in_features)
    A = torch.empty(r, in_features, device=source, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
    sigma = torch.empty(r, device=source, dtype=torch.float32).normal_(generator=generator)
    if core == "dense":
        sigma = torch.diag(sigma)
    return Factors(A.to(B), sigma.to(B), B)


def orthonormal_factors(
    out_features: int, in_features: int, r: int, core: Core, *, dtype: torch.dtype = torch.float32
) -> Factors:
    """A with orthonormal rows and B with orthonormal columns, uniformly distributed, and sigma = 0, so that ΔW = 0.

    A is drawn first, then B, in float32 on the CPU. Arguments as in `initial_factors`; r <= min(out, in).
    """
    A, B = (torch.linalg.qr(torch.randn(n, r).double())[0].to(dtype) for n in (in_features, out_features))
    sigma = torch.zeros(r, dtype=dtype) if core == "diagonal" else torch.zeros(r, r, dtype=dtype)
    return Factors(A.T.contiguous(), sigma, B.contiguous())


def penalty_terms(layers: Sequence[Factors], convention: Convention) -> PenaltyTerms:
    """L2 = sum sigma^2 and L3 = ||A A^T - I_r||_F + ||B^T B - I_r||_F over layers (Eq. 10 and 11).

    `paper`: r x r Grams, summed over layers. `authors`: the norms of the n x n Grams A^T A - I_in and B B^T - I_out,
    by the identity sqrt(||F F^T - I_r||_F^2 + n - r), and means over layers.

    Computed in float32, or float64 for float64 factors; differentiable, with gradient zero (not NaN) where a norm is
    zero. Layers of equal shape share their kernels. The scalars are on the first layer's device; no layers give zeros.

    Raises:
        InputError: the convention is neither "paper" nor "authors".
    """
    check_convention(convention)
    if not layers:
        return PenaltyTerms(torch.zeros(()), torch.zeros(()))
    device = layers[0].A.device
    sigma_parts: list[Tensor] = []
    orthogonality_parts: list[Tensor] = []
    for _, A, sigma, B in _stacked_by_shape(layers):
        norm_A, norm_B = _gram_defect(A, convention)[1], _gram_defect(B.mT, convention)[1]
        sigma_parts.append(sigma.square().sum().to(device))
        orthogonality_parts.append((norm_A.sum() + norm_B.sum()).to(device))
    weight = _layer_weight(layers, convention)
    return PenaltyTerms(weight * torch.stack(sigma_parts).sum(), weight * torch.stack(orthogonality_parts).sum())


@torch.no_grad()
def penalty_gradients(layers: Sequence[Factors], beta: float, gamma: float, convention: Convention) -> list[Factors]:
    """The gradient of beta L2 + gamma L3 (`penalty_terms`), in closed form.

    d/dsigma = 2 beta sigma
    d/dA = 2 gamma (A A^T - I) A / norm_A
    d/dB = 2 gamma B (B^T B - I) / norm_B

    The norms are those of the convention; zero where a norm is zero; divided by the number of layers under `authors`.

    One Factors per layer, in the order, shapes and dtypes of `layers`; computed in float32, or float64 for float64.

    Raises:
        InputError: the convention is neither "paper" nor "authors".
    """
    check_convention(convention)
    gradients: dict[int, Factors] = {}
    weight = _layer_weight(layers, convention)
    for indices, A, sigma, B in _stacked_by_shape(layers):
        grad_A = weight * gamma * _norm_gradient(A, convention)
        grad_B = weight * gamma * _norm_gradient(B.mT, convention).mT
        grad_sigma = (2 * weight * beta) * sigma
        for index, stacked in zip(indices, zip(grad_A, grad_sigma, grad_B, strict=True), strict=True):
            gradients[index] = Factors(*(g.to(f.dtype) for g, f in zip(stacked, layers[index], strict=True)))
    return [gradients[index] for index in range(len(layers))]


def orthogonality_norms(factors: Factors, convention: Convention) -> tuple[Tensor, Tensor]:
    """||A A^T - I|| and ||B^T B - I|| of one layer in the reading of the convention: its distance from orthonormal."""
    check_convention(convention)
    [(_, A, _, B)] = _stacked_by_shape([factors])
    return _gram_defect(A, convention)[1][0], _gram_defect(B.mT, convention)[1][0]


def check_convention(convention: str) -> None:
    """Raise InputError unless convention is one of the two published readings."""
    if convention not in ("paper", "authors"):
        raise InputError(f"convention is {convention!r}, must be 'paper' or 'authors': choose one of the two")


def _stacked_by_shape(layers: Sequence[Factors]) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
    """Layers of equal shapes, dtypes and device, stacked along a new first dimension: (their indices, A, sigma, B)."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, (A, sigma, B) in enumerate(layers):
        groups.setdefault((A.shape, sigma.shape, B.shape, A.dtype, sigma.dtype, B.dtype, A.device), []).append(index)
    for indices in groups.values():
        A, sigma, B = (
            torch.stack(tensors).to(torch.promote_types(tensors[0].dtype, torch.float32))
            for tensors in zip(*(layers[index] for index in indices), strict=True)
        )
        yield indices, A, sigma, B


def _gram_defect(F: Tensor, convention: Convention) -> tuple[Tensor, Tensor]:
    """F F^T - I_r of every F (g, r, n), and its norm in the reading of the convention, shape (g,)."""
    r, n = F.shape[-2:]
    defect = F @ F.mT - torch.eye(r, device=F.device, dtype=F.dtype)
    if convention == "authors" and n < r:
        # n - r is negative here and the identity would cancel; the n x n Gram is the smaller one anyway
        return defect, _gram_defect(F.mT, "paper")[1]
    norm = torch.linalg.vector_norm(defect, dim=(-2, -1))
    if convention == "authors" and n > r:
        norm = torch.sqrt(norm.square() + (n - r))
    return defect, norm


def _norm_gradient(F: Tensor, convention: Convention) -> Tensor:
    """2 (F F^T - I) F / norm, zero where the norm is zero; the conventions differ in the norm alone."""
    defect, norm = _gram_defect(F, convention)
    weight = torch.where(norm > 0, 2 / norm, 0.0)
    return (weight[:, None, None] * defect) @ F


def _layer_weight(layers: Sequence[Factors], convention: Convention) -> float:
    """The weight of one layer in the reduction: 1 in the paper (a sum), 1 / count in the authors' code (a mean)."""
    return 1.0 if convention == "paper" or not layers else 1 / len(layers)

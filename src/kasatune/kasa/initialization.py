from __future__ import annotations

import math

import torch

from kasatune.kasa.convention import Core, check_core
from kasatune.kasa.update import Factors


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
    """A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0, sigma ~ N(0, 1): the factors before training, so that dW = 0.

    A's law is that of kaiming_uniform(a=sqrt 5), as in LoRA. A dense core starts as diag of the same sigma.

    A is drawn first, then sigma, both in float32 on the generator's device (the CPU when there is none) and then
    moved, so that one seed gives the same factors on every device and, up to rounding, in every dtype. On the meta
    device nothing is drawn.

    Args:
        out_features: rows of the weight.
        in_features: columns of the weight.
        r: rank of the adapter.
        core: "diagonal", sigma of shape (r,), or "dense", sigma of shape (r, r).
        generator: source of the random numbers; PyTorch's global one when None.
        device: where the factors live.
        dtype: of all three factors.

    Raises:
        InputError: the core is neither "diagonal" nor "dense".
    """
    check_core(core)
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

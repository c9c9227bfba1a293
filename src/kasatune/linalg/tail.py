"""Compute the r smallest singular triplets of weights (`tail_svd`), one weight or many: what KaSA truncates."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kasatune.errors import ModelError
from kasatune.linalg.smallest import smallest_triplets
from kasatune.linalg.threads import one_torch_thread, side_by_side
from kasatune.linalg.triplets import full_triplets
from kasatune.wording import agree, counted

SMALL = 5 * 2**19
"""Weights of up to this many entries are decomposed on one thread each; several at once use the cores better.

A single weight is decomposed in the same way, so that its bytes do not depend on how many are decomposed with it."""


class TailSVD(NamedTuple):
    """Singular triplets U (out, r), S (r,) descending, Vh (r, in); the component is U diag(S) Vh."""

    U: Tensor
    S: Tensor
    Vh: Tensor


def tail_svd(W: Tensor, r: int, *, name: str | None = None) -> TailSVD:
    """W = U S Vh, its r smallest singular triplets of min(out, in): the component that KaSA drops from a weight.

    Args:
        W: weight (out, in), of any floating dtype. Not modified.
        r: number of triplets, 1 <= r < min(out, in).
        name: of the layer, for error messages.

    Returns:
        U (out, r), S (r,) in descending order, Vh (r, in), on W's device; float64 for a float64 weight, otherwise
        float32. Equal weights give equal bytes.

    Raises:
        ModelError: W is not a matrix of finite floating-point numbers in memory, or r is out of range.
    """
    with one_torch_thread() if _is_small(W) else contextlib.nullcontext():
        _check(W, r, name)
        return _decompose(W, r, name)


def tail_svd_many(
    weights: Sequence[Tensor],
    r: Sequence[int],
    *,
    names: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[TailSVD]:
    """`tail_svd` of each weight with its r, in the order given; the small ones first, several at once.

    Args:
        weights: matrices, of any shapes.
        r: number of triplets of each weight.
        names: of the layers, for error messages.
        progress: called as progress(done, total) after each weight.

    Raises:
        ModelError: as in `tail_svd`; raised before any weight is decomposed.
        ValueError: `r` or `names` has another length than `weights`.
    """
    layer_names = list(names) if names is not None else [None] * len(weights)
    for W, count, name in zip(weights, r, layer_names, strict=True):
        _check(W, count, name)
    jobs = list(zip(weights, r, layer_names, strict=True))
    count = itertools.count(1)

    def advance() -> None:
        if progress is not None:
            progress(next(count), len(jobs))

    small = [job for job in jobs if _is_small(job[0])]
    tails = iter(side_by_side(lambda job: _decompose(*job), small, advance))
    results: list[TailSVD] = []
    for job in jobs:
        if _is_small(job[0]):
            results.append(next(tails))
        else:
            results.append(_decompose(*job))
            advance()
    return results


def _is_small(W: Tensor) -> bool:
    return W.numel() <= SMALL and W.device.type == "cpu"


def _decompose(W: Tensor, r: int, name: str | None) -> TailSVD:
    W = W.detach()
    device, dtype = W.device, torch.float64 if W.dtype == torch.float64 else torch.float32
    # mps has no float64, and in float32 neither W W^T nor the vectors of small singular values are accurate enough
    W = W.to("cpu" if device.type == "mps" else device)
    tall = W.shape[0] > W.shape[1]
    wide = W.mT if tall else W
    # float64 accuracy is guaranteed for a float64 weight, which only the full SVD provides
    U, S, V = full_triplets(wide, r) if dtype == torch.float64 else smallest_triplets(wide, r, name or "weight")
    if tall:
        U, V = V, U
    return TailSVD(*(t.to(device, dtype).contiguous() for t in (U, S, V.mT)))


def _check(W: Tensor, r: int, name: str | None) -> None:
    layer = f"layer {name!r}" if name else "the weight"
    if W.ndim != 2:
        raise ModelError(
            f"{layer} has shape {tuple(W.shape)}, but singular values need a matrix (2 dimensions): "
            "leave the layer out of target_modules"
        )
    if not W.is_floating_point():
        raise ModelError(f"{layer} has dtype {W.dtype}, but a floating-point weight is needed: dequantize it first")
    if W.is_meta:
        raise ModelError(
            f"{layer} is on the meta device, but its values are needed: load the checkpoint before decomposing"
        )
    limit = min(W.shape) - 1
    if not 1 <= r <= limit:
        raise ModelError(
            f"{layer} of shape {tuple(W.shape)} cannot drop r = {counted(r, 'singular triplet')}, r must lie "
            "between 1 and "
            f"{limit}: choose another rank, or leave the layer out of target_modules"
        )
    # a sum is far cheaper than a test of every value, and cannot be finite if one value is not
    if not math.isfinite(W.sum(dtype=W.dtype if W.dtype == torch.float64 else torch.float32).item()):
        bad = int((~torch.isfinite(W.double())).sum())
        if bad:
            raise ModelError(
                f"{layer} holds {counted(bad, 'value')} of {W.numel()} that {agree(bad, 'is', 'are')} NaN or "
                "infinite, but all must be finite: "
                "check the checkpoint, or load it in a wider dtype"
            )

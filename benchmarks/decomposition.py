"""The r smallest singular triplets of a weight: tail_svd against the full SVD, and against one float64 W @ W.T.

python -m benchmarks.decomposition [--quick]
"""

from __future__ import annotations

import torch

from benchmarks.harness import Row, arguments, duration, publish, ratio_in_turn
from kasatune.maths import tail_svd

RANK = 16

# out, in, the bound on ours / torch.linalg.svd, the bound on ours / one product, turns
CASES: tuple[tuple[int, int, float, float | None, int], ...] = (
    (64, 64, 1, None, 41),
    (128, 128, 1, None, 31),
    (256, 256, 1, None, 21),
    (384, 384, 1, None, 21),
    (384, 1536, 1, None, 11),
    (512, 512, 1, None, 11),
    (768, 768, 1, None, 7),
    (768, 3072, 1, None, 7),
    (1024, 1024, 1, None, 7),
    (1024, 2816, 1 / 3, None, 5),
    (2048, 2048, 1 / 3, None, 3),
    (4096, 4096, 1 / 8, 1.5, 3),
    (4096, 11008, 1 / 8, 1.5, 1),
)
SETTLED = 1e8
"""Multiplications in a product beyond which a first call is no slower than the next."""


def component_error(W: torch.Tensor) -> float:
    """||C - C64|| / ||C64|| of the dropped component C, C64 from the full SVD in float64."""
    U, S, Vh = (t.double() for t in tail_svd(W, RANK))
    U64, S64, Vh64 = torch.linalg.svd(W.double(), full_matrices=False)
    reference = (U64[:, -RANK:] * S64[-RANK:]) @ Vh64[-RANK:]
    return float(((U * S) @ Vh - reference).norm() / reference.norm())


def measure(
    out_features: int, in_features: int, svd_bound: float, product_bound: float | None, turns: int
) -> list[Row]:
    W = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(0))

    def ours() -> object:
        return tail_svd(W, RANK)

    def full_svd() -> object:
        return torch.linalg.svd(W, full_matrices=False)

    def product() -> object:
        W64 = W.double()
        return W64 @ W64.mT

    warmup = 3 if out_features**2 * in_features < SETTLED else min(1, turns - 1)
    shape = f"{out_features} x {in_features}"
    peers = [("torch.linalg.svd in float32", full_svd, svd_bound, turns)]
    if product_bound is not None:
        peers.append(("one W @ W.T in float64", product, product_bound, 3))
    rows = []
    for name, peer, bound, count in peers:
        mine, theirs, ratio = ratio_in_turn(ours, peer, count, warmup)
        rows.append(Row(f"{shape}, against {name}", duration(mine), duration(theirs), ratio, bound))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    quick = arguments(__doc__ or "").quick
    cases = CASES
    if quick:
        cases = tuple((*case[:4], 1 if max(case[:2]) > 1024 else case[4]) for case in CASES if case[1] <= 4096)
    rows = [row for case in cases for row in measure(*case)]
    errors = [
        component_error(torch.randn(case[0], case[1], generator=torch.Generator().manual_seed(0)))
        for case in cases
        if max(case[:2]) <= 1024
    ]
    publish(
        "decomposition",
        "The r smallest singular triplets: kasatune against torch.linalg.svd",
        "python -m benchmarks.decomposition",
        rows,
        f"Gaussian float32 weights, r = {RANK}; the product includes the conversion of W. Largest relative error of "
        f"the dropped component against the float64 SVD, over the shapes up to 1024: {max(errors):.1e}.",
        quick=quick,
    )


if __name__ == "__main__":
    main()

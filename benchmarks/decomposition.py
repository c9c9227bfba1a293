"""Time of tail_svd, the r smallest singular triplets, compared with the full SVD and with one float64 W @ W.T.

python -m benchmarks.decomposition [--quick] [--device cuda]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from benchmarks.harness import Row, duration, publish, ratio_in_turn
from kasatune.linalg import tail_svd

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
GPU_CASES: tuple[tuple[int, int, float, float | None, int], ...] = (
    (1024, 1024, 1, None, 5),
    (2048, 2048, 1, None, 3),
    (4096, 4096, 1 / 20, None, 3),
    (4096, 11008, 1 / 20, None, 1),
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
    out_features: int, in_features: int, svd_bound: float, product_bound: float | None, turns: int, device: str
) -> list[Row]:
    W = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(0)).to(device)

    def finished(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            work()
            if W.device.type == "cuda":
                torch.cuda.synchronize()

        return run

    def square() -> object:
        W64 = W.double()
        return W64 @ W64.mT

    ours = finished(lambda: tail_svd(W, RANK))
    full_svd = finished(lambda: torch.linalg.svd(W, full_matrices=False))
    product = finished(square)

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller shapes and fewer turns")
    parser.add_argument("--device", default="cpu", help="where to decompose")
    options = parser.parse_args()
    quick, device = options.quick, options.device
    name = "decomposition" if device == "cpu" else f"decomposition-{torch.device(device).type}"
    cases = CASES if device == "cpu" else GPU_CASES
    if quick:
        cases = tuple((*case[:4], 1 if max(case[:2]) > 1024 else case[4]) for case in cases if case[1] <= 4096)
    rows = [row for case in cases for row in measure(*case, device)]
    errors = [
        component_error(torch.randn(case[0], case[1], generator=torch.Generator().manual_seed(0)))
        for case in cases
        if max(case[:2]) <= 1024
    ]
    publish(
        name,
        "The r smallest singular triplets: kasatune against torch.linalg.svd",
        "python -m benchmarks.decomposition" + ("" if device == "cpu" else f" --device {device}"),
        rows,
        f"Gaussian float32 weights, r = {RANK}; the product includes the conversion of W. Largest relative error of "
        f"the dropped component on the CPU against the float64 SVD, over the shapes up to 1024: {max(errors):.1e}."
        + ("" if device == "cpu" else f" Device: {torch.cuda.get_device_name(device)}."),
        quick=quick,
    )


if __name__ == "__main__":
    main()

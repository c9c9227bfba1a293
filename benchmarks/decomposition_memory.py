"""Peak memory of tail_svd: at most W in float64 and two k x k matrices, k = min(out, in).

python -m benchmarks.decomposition_memory [--quick]
"""

from __future__ import annotations

import torch

from benchmarks.harness import Row, arguments, publish
from benchmarks.scaling import measured
from kasatune.linalg import tail_svd

RANK = 16
SHAPES = ((2048, 2048), (2048, 5632), (4096, 4096), (4096, 11008))


def bound(out_features: int, in_features: int) -> int:
    """Bytes of W in float64 and of two k x k matrices."""
    return 8 * out_features * in_features + 16 * min(out_features, in_features) ** 2


def main() -> None:
    quick = arguments(__doc__ or "").quick
    rows = []
    for shape in SHAPES[:2] if quick else SHAPES:
        W = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        _, taken = measured(lambda W=W: tail_svd(W, RANK), turns=1)
        if taken is None:
            raise SystemExit("the peak of the resident size is read from Linux's /proc/self/status: run it there")
        allowed = bound(*shape)
        name = f"{shape[0]} x {shape[1]}: peak, against W in float64 and two k x k"
        rows.append(Row(name, f"{taken / 1e6:.0f} MB", f"{allowed / 1e6:.0f} MB", taken / allowed, 1.0))
    publish(
        "decomposition_memory",
        "What a decomposition takes of memory",
        "python -m benchmarks.decomposition_memory",
        rows,
        f"Gaussian float32 weights, r = {RANK}. How far the process's resident size rose while a weight was decomposed "
        "that had been decomposed before, so that buffers which the libraries keep are not counted; nor is the weight "
        "itself in float32.",
        quick=quick,
        meaning="The ratio is ours / the bound, one decomposition each; lower is better.",
    )


if __name__ == "__main__":
    main()

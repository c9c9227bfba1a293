"""What tail_svd takes of memory at its peak: at most W in float64 and two k x k matrices, k = min(out, in).

python -m benchmarks.decomposition_memory

Each shape has a process of its own: W is made, a small weight is decomposed so that the libraries are there, Linux is
told to forget the peak so far, and what the resident memory rises to above its size then is compared with the bound.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.harness import Row, arguments, publish

RANK = 16
SHAPES = ((2048, 2048), (2048, 5632), (4096, 4096), (4096, 11008))
PROCESS = "benchmarks.decomposition_memory"


def peak(out_features: int, in_features: int) -> int:
    """Bytes that the resident memory of this process rises by while a Gaussian float32 weight is decomposed."""
    import torch

    from kasatune.maths import tail_svd

    W = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(0))
    tail_svd(W[:512, :512].contiguous(), RANK)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    tail_svd(W, RANK)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if name in line)
    return int(line.split()[1]) * 1024


def bound(out_features: int, in_features: int) -> int:
    return 8 * out_features * in_features + 16 * min(out_features, in_features) ** 2


def main() -> None:
    if len(sys.argv) == 3:
        print(peak(int(sys.argv[1]), int(sys.argv[2])))
        return
    quick = arguments(__doc__ or "").quick
    rows = []
    for shape in SHAPES[:2] if quick else SHAPES:
        command = [sys.executable, "-m", PROCESS, *map(str, shape)]
        taken = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        allowed = bound(*shape)
        name = f"{shape[0]} x {shape[1]}: peak, against W in float64 and two k x k"
        rows.append(Row(name, f"{taken / 1e6:.0f} MB", f"{allowed / 1e6:.0f} MB", taken / allowed, 1.0))
    publish(
        "decomposition_memory",
        "What a decomposition takes of memory",
        "python -m benchmarks.decomposition_memory",
        rows,
        f"Gaussian float32 weights, r = {RANK}, one process each. The weight itself, in float32, is there before.",
        quick=quick,
    )


if __name__ == "__main__":
    main()

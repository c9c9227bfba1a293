"""Time of the cache of tails by weight shape, and of decomposing small weights in parallel.

python -m benchmarks.tails [--quick]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.harness import Row, arguments, duration, publish, ratio_in_turn
from kasatune import tail_svd
from kasatune.kasa.truncation.tail_store import SMALLEST_CACHED, TailKey, read_tail, write_tail
from kasatune.linalg import tail_svd_many

RANK = 8
SIZES = ((64, 64), (128, 128), (192, 192), (256, 256), (384, 1536), (768, 768), (1024, 2816), (2048, 2048))


def weights(shape: tuple[int, int], count: int) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=made) for _ in range(count)]


def found(folder: Path, W: torch.Tensor) -> Callable[[], object]:
    """Hash a weight, read its tail and check it."""

    def run() -> object:
        key = TailKey.of(W, RANK)
        return read_tail(folder / key.filename, key)

    return run


def kept(folder: Path, W: torch.Tensor) -> Callable[[], object]:
    """What a miss costs besides the decomposition: hash a weight and write its tail."""
    tail = tail_svd(W, RANK)
    return lambda: write_tail(folder, TailKey.of(W, RANK), tail)


def main() -> None:
    quick = arguments(__doc__ or "").quick
    sizes = SIZES[:6] if quick else SIZES
    turns = 9 if quick else 15
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for shape in sizes:
            W = weights(shape, 1)[0]
            name, worth = f"{shape[0]} x {shape[1]}", min(shape) >= SMALLEST_CACHED
            kept(folder, W)()
            for what, run in (("found in the cache", found(folder, W)), ("put into the cache", kept(folder, W))):
                mine, theirs, ratio = ratio_in_turn(run, lambda W=W: tail_svd(W, RANK), turns, warmup=2)
                limit = 1.0 if worth else None
                rows.append(Row(f"{name} {what} / decomposed", duration(mine), duration(theirs), ratio, limit))
        for shape in ((384, 384), (768, 768), (1024, 1024)) if quick else ((384, 384), (768, 3072), (2048, 2048)):
            several = weights(shape, 8)
            mine, theirs, ratio = ratio_in_turn(
                lambda several=several: tail_svd_many(several, [RANK] * len(several)),
                lambda several=several: [tail_svd(W, RANK) for W in several],
                max(3, turns // 3),
            )
            name = f"8 weights of {shape[0]} x {shape[1]}, together / one by one"
            rows.append(Row(name, duration(mine), duration(theirs), ratio, None))
    publish(
        "tails",
        "Tails kept, and tails computed together",
        "python -m benchmarks.tails",
        rows,
        f"Float32, r = {RANK}. Weights with min(out, in) below {SMALLEST_CACHED} are not cached. Together: as many "
        "of the small weights at once as there are threads, each on one; large ones one by one, with all threads.",
        quick=quick,
    )


if __name__ == "__main__":
    main()

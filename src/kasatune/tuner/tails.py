"""The tails of many weights: from a directory or the cache where they are there, computed where not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from kasatune.maths import TailSVD, tail_svd_many
from kasatune.tuner.progress import counted
from kasatune.tuner.tail_cache import SMALLEST, TailCache
from kasatune.tuner.tail_directory import TailDirectory
from kasatune.tuner.tail_files import TailKey

# Small weights are decomposed together, up to so many entries; a larger one is alone in memory.
_TOGETHER = 2**22


class Wanted(NamedTuple):
    """A weight whose tail is wanted.

    Args:
        name: of the layer.
        W: (out, in), float.
        dropped: number of triplets, at least 1.
    """

    name: str
    W: Tensor
    dropped: int


def tails_of(wanted: Iterable[Wanted], total: int, directory: str | Path | None = None) -> dict[str, TailSVD]:
    """The tail of every weight, by layer name.

    Args:
        wanted: taken one by one, so that weights that are opened on the way need not be in memory together.
        total: how many there are.
        directory: that `kasatune decompose` wrote; None for none.

    Raises:
        InputError: `directory` is none, or lacks a tail.
        ModelError: a weight cannot be decomposed, by name.
    """
    tails: dict[str, TailSVD] = {}
    saved = TailDirectory(Path(directory)) if directory is not None else None
    cache = TailCache.of_user()
    waiting: list[tuple[Wanted, TailKey | None]] = []
    with counted("decomposing", total) as advance:
        for one in wanted:
            key = _key(one, saved, cache)
            tail = None if key is None else _found(key, one.name, saved, cache)
            if tail is not None:
                tails[one.name] = tail
                advance()
                continue
            waiting.append((one, key))
            del one
            if sum(waits.W.numel() for waits, _ in waiting) >= _TOGETHER:
                _compute(waiting, tails, cache, advance)
        _compute(waiting, tails, cache, advance)
    if cache is not None:
        cache.trim()
    return tails


def _key(one: Wanted, saved: TailDirectory | None, cache: TailCache | None) -> TailKey | None:
    """The key of a tail that is worth looking for."""
    kept = cache is not None and min(one.W.shape) >= SMALLEST and one.W.device.type == "cpu"
    return TailKey.of(one.W, one.dropped) if kept or saved is not None else None


def _found(key: TailKey, name: str, saved: TailDirectory | None, cache: TailCache | None) -> TailSVD | None:
    tail = saved.get(key, name) if saved is not None else None
    return cache.get(key) if tail is None and cache is not None else tail


def _compute(
    waiting: list[tuple[Wanted, TailKey | None]],
    tails: dict[str, TailSVD],
    cache: TailCache | None,
    advance: Callable[[], None],
) -> None:
    """Decompose what waits, and empty the list."""
    found = tail_svd_many(
        [one.W for one, _ in waiting],
        [one.dropped for one, _ in waiting],
        names=[one.name for one, _ in waiting],
        progress=lambda done, total: advance(),
    )
    for (one, key), tail in zip(waiting, found, strict=True):
        tails[one.name] = tail
        if key is not None and cache is not None:
            cache.put(key, tail)
    waiting.clear()

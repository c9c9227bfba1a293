"""The tails of many weights: from a directory or the cache where they are there, computed where not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as distributed
from torch import Tensor

from kasatune.io.progress import counted
from kasatune.kasa.truncation.cache import SMALLEST, TailCache
from kasatune.kasa.truncation.directory import TailDirectory
from kasatune.kasa.truncation.files import TailKey
from kasatune.linalg import TailSVD, tail_svd_many

# Small weights are decomposed together, up to so many entries; a larger one is alone in memory.
_TOGETHER = 2**24
_SHARED: ContextVar[bool] = ContextVar("decomposed_together", default=False)


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


@contextmanager
def decomposed_together() -> Iterator[None]:
    """Within it, the processes of torch.distributed share the weights among them; all must attach the same adapter."""
    token = _SHARED.set(True)
    try:
        yield
    finally:
        _SHARED.reset(token)


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
    if not (_SHARED.get() and distributed.is_available() and distributed.is_initialized()):
        return _own_tails(wanted, total, directory)
    process, processes = distributed.get_rank(), distributed.get_world_size()
    names: list[str] = []

    def share() -> Iterator[Wanted]:
        for number, one in enumerate(wanted):
            names.append(one.name)
            if number % processes == process:
                yield one

    own = _own_tails(share(), len(range(process, total, processes)), directory)
    parts: list[dict[str, TailSVD]] = [{} for _ in range(processes)]
    group: Any = distributed.new_group(backend="gloo")
    distributed.all_gather_object(parts, own, group=group)
    distributed.destroy_process_group(group)
    found = {name: tail for part in parts for name, tail in part.items()}
    return {name: found[name] for name in names}


def _own_tails(wanted: Iterable[Wanted], total: int, directory: str | Path | None) -> dict[str, TailSVD]:
    """The tails that this process computes or finds."""
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

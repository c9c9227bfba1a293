"""Compute the truncated triplets (tails) of many weights, or read them from a directory or the cache."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from torch import Tensor, distributed

from kasatune.distributed.process_group import broadcast_from_first
from kasatune.errors import InputError, KasatuneError
from kasatune.io.progress import progress_counter
from kasatune.kasa.truncation.tail_store import SMALLEST_CACHED, TailCache, TailDirectory, TailKey
from kasatune.linalg import TailSVD, tail_svd_many

_BATCH_ENTRIES = 2**24
"""Weights are decomposed together up to this many entries; a larger one is alone in memory."""

_SHARED: ContextVar[bool | None] = ContextVar("decompositions_shared", default=None)
"""None outside of every context: tails are computed in each process, and what activations choose in the first one."""

_Result = TypeVar("_Result")


class TailRequest(NamedTuple):
    """A weight whose tail is requested.

    Args:
        name: of the layer.
        W: (out, in), float.
        drop: number of triplets, at least 1.
    """

    name: str
    W: Tensor
    drop: int


@contextmanager
def decompositions_shared(shared: bool = True) -> Generator[None, None, None]:
    """Divide decompositions among the processes of torch.distributed; all must attach the same adapter.

    Args:
        shared: False for work of one process alone within such a context.
    """
    token = _SHARED.set(shared)
    try:
        yield
    finally:
        _SHARED.reset(token)


def are_decompositions_shared() -> bool:
    """Whether every process of a distributed run is decomposing the same adapter now."""
    return bool(_SHARED.get()) and distributed.is_available() and distributed.is_initialized()


def is_calibration_shared() -> bool:
    """Whether the first of several processes measures activations for all of them, which must all ask for it."""
    alone = _SHARED.get() is False or not distributed.is_available() or not distributed.is_initialized()
    return not alone and distributed.get_world_size() > 1


def in_first_process(work: Callable[[], _Result]) -> _Result:
    """The result of `work` in the first process, in every process; a collective call.

    Raises:
        KasatuneError: what `work` raised, in every process.
    """
    outcome: _Result | KasatuneError | None = None
    if distributed.get_rank() == 0:
        try:
            with decompositions_shared(False):
                outcome = work()
        except KasatuneError as error:
            outcome = error
    outcome = broadcast_from_first(outcome)
    if isinstance(outcome, KasatuneError):
        raise outcome
    return cast("_Result", outcome)


def compute_tails(
    requests: Iterable[TailRequest], total: int, directory: str | Path | None = None
) -> dict[str, TailSVD]:
    """The tail of every requested weight, by layer name.

    Args:
        requests: consumed one at a time, so that weights opened by the iterator need not be in memory together.
        total: the number of requests.
        directory: written by `kasatune decompose`, to read the tails from; None for none.

    Raises:
        InputError: `directory` is not such a directory.
        ModelError: a weight cannot be decomposed, or is missing from `directory`; by name.
    """
    if not are_decompositions_shared():
        return _tails_of_this_process(requests, total, directory)
    process, processes = distributed.get_rank(), distributed.get_world_size()
    names: list[str] = []

    def share() -> Iterator[TailRequest]:
        for number, request in enumerate(requests):
            names.append(request.name)
            if number % processes == process:
                yield request

    own = _tails_of_this_process(share(), len(range(process, total, processes)), directory)
    parts: list[dict[str, TailSVD]] = [{} for _ in range(processes)]
    group: Any = distributed.new_group(backend="gloo")
    distributed.all_gather_object(parts, own, group=group)
    distributed.destroy_process_group(group)
    tails = {name: tail for part in parts for name, tail in part.items()}
    return {name: tails[name] for name in names}


def _tails_of_this_process(
    requests: Iterable[TailRequest], total: int, directory: str | Path | None
) -> dict[str, TailSVD]:
    tails: dict[str, TailSVD] = {}
    saved = TailDirectory(Path(directory)) if directory is not None else None
    if saved is not None and saved.truncate_by != "magnitude":
        raise InputError(
            f"tails: {directory} holds components chosen by activation, and truncate_by is 'magnitude': set "
            "truncate_by to 'activation', or make a directory with `kasatune decompose`"
        )
    cache = TailCache.of_user()
    batch: list[tuple[TailRequest, TailKey | None]] = []
    with progress_counter("decomposing", total) as advance:
        for request in requests:
            key = _key(request, saved, cache)
            tail = None if key is None else _stored_tail(key, request.name, saved, cache)
            if tail is not None:
                tails[request.name] = tail
                advance()
                continue
            batch.append((request, key))
            del request  # the batch alone holds the weight
            if sum(queued.W.numel() for queued, _ in batch) >= _BATCH_ENTRIES:
                _decompose(batch, tails, cache, advance)
        _decompose(batch, tails, cache, advance)
    if cache is not None:
        cache.trim()
    return tails


def _key(request: TailRequest, saved: TailDirectory | None, cache: TailCache | None) -> TailKey | None:
    """The key of a tail that may be stored; None where looking it up costs more than the decomposition."""
    cached = cache is not None and min(request.W.shape) >= SMALLEST_CACHED and request.W.device.type == "cpu"
    return TailKey.of(request.W, request.drop) if cached or saved is not None else None


def _stored_tail(key: TailKey, name: str, saved: TailDirectory | None, cache: TailCache | None) -> TailSVD | None:
    tail = saved.get(key, name) if saved is not None else None
    return cache.get(key) if tail is None and cache is not None else tail


def _decompose(
    batch: list[tuple[TailRequest, TailKey | None]],
    tails: dict[str, TailSVD],
    cache: TailCache | None,
    advance: Callable[[], None],
) -> None:
    """Decompose a batch into `tails`, and empty it."""

    def report(done: int, total: int) -> None:
        advance()

    computed = tail_svd_many(
        [request.W for request, _ in batch],
        [request.drop for request, _ in batch],
        names=[request.name for request, _ in batch],
        progress=report,
    )
    for (request, key), tail in zip(batch, computed, strict=True):
        tails[request.name] = tail
        if key is not None and cache is not None:
            cache.put(key, tail)
    batch.clear()

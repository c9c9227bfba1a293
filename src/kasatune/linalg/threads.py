"""How many threads the linear algebra of a decomposition takes, and how many decompositions go on at once."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


class _BlasLimit:
    """One thread for numpy's and scipy's BLAS while anybody asks for it; the first comes, the last restores."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: list[int] = []

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before = [library.num_threads for library in _blas_libraries()]
                for library in _blas_libraries():
                    library.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for library, threads in zip(_blas_libraries(), self._before, strict=True):
                    library.set_num_threads(threads)


one_blas_thread = _BlasLimit()
"""Context: numpy's and scipy's linear algebra on one thread; torch keeps its own.

Their threads and torch's wait for work by spinning and take each other's cores: on two cores the reduction of a
128 x 128 matrix takes twelve times as long as on one thread alone, of a 1024 x 1024 one twice.
"""


@functools.cache
def _blas_libraries() -> list[Any]:
    # looking for the libraries takes a millisecond, limiting one a microsecond, which counts on a 64 x 64 matrix
    return ThreadpoolController().select(user_api="blas").lib_controllers


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch's operations of this thread on one core meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(work: Callable[[_Job], _Result], jobs: Sequence[_Job], done: Callable[[], None]) -> list[_Result]:
    """`work` of every job, as many at once as torch has threads, each on one thread; in the order given.

    Args:
        work: what to do.
        jobs: with what.
        done: called in this thread after each job, in the order given.
    """
    threads = torch.get_num_threads()
    results = []
    if threads == 1 or len(jobs) < 2:
        for job in jobs:
            with one_torch_thread():
                results.append(work(job))
            done()
        return results
    try:
        # held over all jobs: OpenBLAS's threads spin for a while whenever the limit is lifted between two of them
        with one_blas_thread, ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for result in pool.map(work, jobs):
                results.append(result)
                done()
    finally:
        torch.set_num_threads(threads)  # threads that are made later take what was set last
    return results

"""Threads of a decomposition: limit BLAS and torch to one thread, and run several decompositions in parallel."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


class _BlasLimit:
    """One thread for numpy's and scipy's BLAS while any user is inside; the first limits it, the last restores it."""

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
"""Context manager: numpy's and scipy's linear algebra on one thread; torch keeps its threads.

Their threads and torch's spin while they wait for work and compete for the cores: on two cores the reduction of a
128 x 128 matrix takes twelve times as long as on one thread, of a 1024 x 1024 matrix twice as long.
"""


@functools.cache
def _blas_libraries() -> list[Any]:
    # finding the libraries takes a millisecond, limiting one a microsecond, which matters for a 64 x 64 matrix
    return ThreadpoolController().select(user_api="blas").lib_controllers


@contextmanager
def one_torch_thread() -> Generator[None, None, None]:
    """Run torch's operations of this thread on one core within the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(work: Callable[[_Job], _Result], jobs: Sequence[_Job], done: Callable[[], None]) -> list[_Result]:
    """Results of `work` for every job, in order; as many jobs at once as torch has threads, each on one thread.

    Args:
        work: computes one result.
        jobs: its arguments.
        done: called in this thread after each job, in order.
    """
    threads = torch.get_num_threads()
    results: list[_Result] = []
    if threads == 1 or len(jobs) < 2:
        for job in jobs:
            with one_torch_thread():
                results.append(work(job))
            done()
        return results
    try:
        # one limit for all jobs: OpenBLAS's threads spin for a while whenever the limit is lifted between two of them
        with one_blas_thread, ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for result in pool.map(work, jobs):
                results.append(result)
                done()
    finally:
        torch.set_num_threads(threads)  # threads created later inherit the value set last
    return results

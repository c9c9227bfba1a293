"""Where the runs of a comparison execute: in this process, in worker processes of this machine, or on Ray."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Protocol

from kasatune.errors import WorkError
from kasatune.experiments.compare.execute_run import execute_run
from kasatune.experiments.compare.process_cache import ProcessCache, process_cache
from kasatune.experiments.compare.run_id import PlannedRun
from kasatune.experiments.compare.worker_process import start_worker


class Executor(Protocol):
    """Executes runs, up to `slots` at a time."""

    slots: int

    def submit(self, run: PlannedRun) -> None:
        """Start a run; the caller keeps at most `slots` runs under way."""
        ...

    def next(self) -> str:
        """Wait until any submitted run is finished, and return its ID."""
        ...

    def close(self) -> None:
        """Stop the runs that are under way."""
        ...


class SequentialExecutor:
    """One run at a time, in this process.

    Args:
        runs: folder of the finished runs.
        cache: inputs that the runs share.
        threads: CPU threads of each run.
        keep_adapters: keep the weights of reported runs.
    """

    slots = 1

    def __init__(self, runs: Path, cache: ProcessCache, *, threads: int, keep_adapters: bool) -> None:
        self._runs, self._cache = runs, cache
        self._threads, self._keep_adapters = threads, keep_adapters
        self._submitted: PlannedRun | None = None

    def submit(self, run: PlannedRun) -> None:
        """See `Executor.submit`."""
        self._submitted = run

    def next(self) -> str:
        """See `Executor.next`."""
        assert self._submitted is not None
        return execute_run(
            self._submitted, self._runs, self._cache, threads=self._threads, keep_adapters=self._keep_adapters
        )

    def close(self) -> None:
        """See `Executor.close`."""


class ProcessExecutor:
    """`workers` processes of this machine, each with its own cache of shared inputs.

    With several GPUs the processes are assigned to them round robin.

    Args:
        workers: number of processes.
        runs: folder of the finished runs.
        threads: CPU threads of each run.
        keep_adapters: keep the weights of reported runs.
    """

    def __init__(self, workers: int, runs: Path, *, threads: int, keep_adapters: bool) -> None:
        self.slots = workers
        context = multiprocessing.get_context("spawn")
        self._arguments = (runs, threads, keep_adapters)
        self._pool = ProcessPoolExecutor(
            workers, mp_context=context, initializer=start_worker, initargs=(context.Value("i", 0), os.getpid())
        )
        self._under_way: set[Future[str]] = set()

    def submit(self, run: PlannedRun) -> None:
        """See `Executor.submit`."""
        self._under_way.add(self._pool.submit(_execute_in_worker, run, *self._arguments))

    def next(self) -> str:
        """See `Executor.next`.

        Raises:
            WorkError: a worker was killed, most likely for lack of memory.
        """
        done, self._under_way = wait(self._under_way, return_when=FIRST_COMPLETED)
        first, *rest = done
        self._under_way |= set(rest)
        try:
            return first.result()
        except BrokenProcessPool as fault:
            raise WorkError(
                "a worker process was killed, most likely for lack of memory; use fewer --workers. "
                "Finished runs are kept"
            ) from fault

    def close(self) -> None:
        """See `Executor.close`."""
        for process in list((getattr(self._pool, "_processes", None) or {}).values()):
            process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)


def make_executor(
    workers: int | str,
    runs: Path,
    cache: ProcessCache,
    *,
    threads: int,
    keep_adapters: bool,
    gpus: float | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Executor:
    """Return the executor for `--workers`: 1, a number of processes, or "ray".

    Args:
        workers: value of `--workers`.
        runs: folder of the finished runs.
        cache: inputs shared by the runs of this process.
        threads: CPU threads of each run.
        keep_adapters: keep the weights of reported runs.
        gpus: GPUs that each run requests from Ray; None requests one if the cluster has any.
        tell: receives a message about where the runs execute.

    Raises:
        MissingExtraError: Ray is requested but not installed.
    """
    if workers == "ray":
        from kasatune.experiments.compare.ray_executor import RayExecutor

        return RayExecutor(runs, threads=threads, keep_adapters=keep_adapters, gpus=gpus, tell=tell)
    if workers == 1:
        return SequentialExecutor(runs, cache, threads=threads, keep_adapters=keep_adapters)
    return ProcessExecutor(int(workers), runs, threads=threads, keep_adapters=keep_adapters)


def _execute_in_worker(run: PlannedRun, runs: Path, threads: int, keep_adapters: bool) -> str:
    return execute_run(run, runs, process_cache(), threads=threads, keep_adapters=keep_adapters)

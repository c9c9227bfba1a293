"""Where the runs of a comparison are done: here one after the other, in processes of this machine, or on Ray."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

from kasatune.errors import WorkError
from kasatune.experiments.compare.execute_run import do
from kasatune.experiments.compare.process_cache import Shared
from kasatune.experiments.compare.run_id import Job
from kasatune.experiments.compare.worker_process import begin

_SHARED: Shared | None = None


class Pool(Protocol):
    """Does runs, some at a time."""

    slots: int

    def submit(self, job: Job) -> None:
        """Take on a run; at most `slots` are under way at once."""
        ...

    def next(self) -> str:
        """Wait for any run that was taken on, and give its ID."""
        ...

    def close(self) -> None:
        """Stop what is under way."""
        ...


class Sequential:
    """One run after the other, in this process.

    Args:
        runs: folder of the finished runs.
        shared: what the runs share.
        threads: of the processor, for each run.
        keep_adapters: keep the weights of reported runs.
    """

    slots = 1

    def __init__(self, runs: Path, shared: Shared, *, threads: int, keep_adapters: bool) -> None:
        self._runs, self._shared = runs, shared
        self._threads, self._keep = threads, keep_adapters
        self._job: Job | None = None

    def submit(self, job: Job) -> None:
        """See `Pool.submit`."""
        self._job = job

    def next(self) -> str:
        """See `Pool.next`."""
        assert self._job is not None
        return do(self._job, self._runs, self._shared, threads=self._threads, keep_adapters=self._keep)

    def close(self) -> None:
        """See `Pool.close`."""


class Processes:
    """`workers` processes of this machine; each loads what runs share for itself, once.

    With more than one GPU, the processes take them in turn.

    Args:
        workers: how many.
        runs: folder of the finished runs.
        threads: of the processor, for each run.
        keep_adapters: keep the weights of reported runs.
    """

    def __init__(self, workers: int, runs: Path, *, threads: int, keep_adapters: bool) -> None:
        self.slots = workers
        context = multiprocessing.get_context("spawn")
        self._arguments = (runs, threads, keep_adapters)
        self._executor = ProcessPoolExecutor(
            workers, mp_context=context, initializer=begin, initargs=(context.Value("i", 0), os.getpid())
        )
        self._under_way: set[Future[str]] = set()

    def submit(self, job: Job) -> None:
        """See `Pool.submit`."""
        self._under_way.add(self._executor.submit(_do_here, job, *self._arguments))

    def next(self) -> str:
        """See `Pool.next`.

        Raises:
            WorkError: a worker was killed, for want of memory most likely.
        """
        done, self._under_way = wait(self._under_way, return_when=FIRST_COMPLETED)
        first, *rest = done
        self._under_way |= set(rest)
        try:
            return first.result()
        except BrokenProcessPool as fault:
            raise WorkError(
                "a worker was killed, for want of memory most likely; use fewer --workers. Finished runs are kept"
            ) from fault

    def close(self) -> None:
        """See `Pool.close`."""
        for process in list((getattr(self._executor, "_processes", None) or {}).values()):
            process.terminate()
        self._executor.shutdown(wait=True, cancel_futures=True)


def make_pool(
    workers: int | str,
    runs: Path,
    shared: Shared,
    *,
    threads: int,
    keep_adapters: bool,
    gpus: float | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Pool:
    """The pool that `workers` asks for: 1, a number of processes, or "ray".

    Args:
        workers: as `--workers` has it.
        runs: folder of the finished runs.
        shared: what runs in this process share.
        threads: of the processor, for each run.
        keep_adapters: keep the weights of reported runs.
        gpus: that a run asks Ray for; None for one where the cluster has any and the recipes allow it.
        tell: is told where the work is done.

    Raises:
        MissingExtraError: Ray is asked for and not installed.
    """
    if workers == "ray":
        from kasatune.experiments.compare.ray_executor import RayPool

        return RayPool(runs, threads=threads, keep_adapters=keep_adapters, gpus=gpus, tell=tell)
    if workers == 1:
        return Sequential(runs, shared, threads=threads, keep_adapters=keep_adapters)
    return Processes(int(workers), runs, threads=threads, keep_adapters=keep_adapters)


def shared_here() -> Shared:
    """What the runs of this process share."""
    global _SHARED
    if _SHARED is None:
        _SHARED = Shared()
    return _SHARED


def _do_here(job: Job, runs: Path, threads: int, keep_adapters: bool) -> str:
    return do(job, runs, shared_here(), threads=threads, keep_adapters=keep_adapters)


def begin_worker(counter: Any, parent: int) -> None:
    """Ctrl-C is the parent's business; without a parent a worker ends; each takes the next GPU."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))  # and not what a run of its own makes of it
    with counter.get_lock():
        number, counter.value = counter.value, counter.value + 1
    import torch

    visible = torch.cuda.device_count()
    if visible > 1:
        names = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(visible)))).split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = names[number % len(names)]

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

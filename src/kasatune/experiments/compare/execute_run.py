"""One run of a comparison: done in a folder of its own, or recorded as failed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from kasatune.errors import DivergedError, InputError, KasatuneError
from kasatune.experiments.compare.process_cache import FOLDERS, Shared
from kasatune.experiments.compare.run_id import Job
from kasatune.experiments.compare.run_store import publish, unfinished_folder
from kasatune.io.atomic import remove
from kasatune.kasa.truncation.tail_store import CACHE_FOLDER
from kasatune.runs.directory import WORK
from kasatune.training.train import train


def do(job: Job, runs: Path, shared: Shared, *, threads: int, keep_adapters: bool) -> str:
    """Do a run and put it among the finished ones, whether it came to its end or failed.

    Args:
        job: the run.
        runs: folder of the finished runs.
        shared: what runs of this process share.
        threads: of the processor, for torch; part of what decides the last digits of a score.
        keep_adapters: keep the trained weights of runs that are reported.

    Returns:
        The job's ID.

    Raises:
        KeyboardInterrupt: it was stopped; nothing is left of it.
    """
    folder = unfinished_folder(runs, job.id)
    before = torch.get_num_threads()
    start = time.perf_counter()
    error, final = None, True
    try:
        torch.set_num_threads(threads)
        with _without_tail_cache() if job.cold else nullcontext():
            train(job.recipe, folder, supplies=shared.supplies(search=job.search))
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except Exception as fault:  # a method's failure is a result, whatever it raises
        error = f"{type(fault).__name__}: {fault}" if not isinstance(fault, KasatuneError) else str(fault)
        final = isinstance(fault, (DivergedError, InputError))
        folder.mkdir(parents=True, exist_ok=True)
    finally:
        torch.set_num_threads(before)
    if error is not None or job.search or not keep_adapters:
        for name in (*FOLDERS, WORK):
            remove(folder / name)
    publish(folder, runs, job, seconds=time.perf_counter() - start, error=error, final=final)
    return job.id


@contextmanager
def _without_tail_cache() -> Iterator[None]:
    before = os.environ.get(CACHE_FOLDER)
    os.environ[CACHE_FOLDER] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ[CACHE_FOLDER]
        else:
            os.environ[CACHE_FOLDER] = before

"""Execute one run of a comparison in its own folder; a failure is recorded as a result."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from kasatune.errors import DivergedError, InputError, KasatuneError
from kasatune.experiments.compare.base_run import score_base
from kasatune.experiments.compare.process_cache import ProcessCache
from kasatune.experiments.compare.run_id import PlannedRun
from kasatune.experiments.compare.run_store import publish, unfinished_folder
from kasatune.io.atomic import remove
from kasatune.io.run_layout import WEIGHT_FOLDERS, WORK
from kasatune.kasa.truncation.tail_store import CACHE_FOLDER
from kasatune.training.train import train


def execute_run(run: PlannedRun, runs: Path, cache: ProcessCache, *, threads: int, keep_adapters: bool) -> str:
    """Train and score one run, and add it to the finished ones, whether it succeeded or failed.

    Args:
        run: the run.
        runs: folder of the finished runs.
        cache: inputs that the runs of this process share.
        threads: CPU threads for torch; they affect the last digits of a score.
        keep_adapters: keep the trained weights of reported runs.

    Returns:
        The run's ID.

    Raises:
        KeyboardInterrupt: the run was interrupted; none of its files remain.
    """
    folder = unfinished_folder(runs, run.id)
    threads_before = torch.get_num_threads()
    start = time.perf_counter()
    error, final = None, True
    try:
        torch.set_num_threads(threads)
        with _without_tail_cache() if run.cold else nullcontext():
            provider = cache.data_provider(
                search=run.search, unrelated=run.unrelated, writes_text=run.untrained or run.unrelated is not None
            )
            if run.unrelated is not None:
                cache.untrained(run.recipe, run.unrelated)  # before the run's peak memory is measured
            if run.untrained:
                score_base(run.recipe, folder, provider)
            else:
                train(run.recipe, folder, data_provider=provider)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except Exception as fault:  # whatever a method raises, its failure is a result
        error = f"{type(fault).__name__}: {fault}" if not isinstance(fault, KasatuneError) else str(fault)
        final = isinstance(fault, (DivergedError, InputError))
        folder.mkdir(parents=True, exist_ok=True)
    finally:
        torch.set_num_threads(threads_before)
    if error is not None or run.search or not keep_adapters:
        for name in (*WEIGHT_FOLDERS, WORK):
            remove(folder / name)
    publish(folder, runs, run, seconds=time.perf_counter() - start, error=error, final=final)
    return run.id


@contextmanager
def _without_tail_cache() -> Generator[None]:
    before = os.environ.get(CACHE_FOLDER)
    os.environ[CACHE_FOLDER] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ[CACHE_FOLDER]
        else:
            os.environ[CACHE_FOLDER] = before

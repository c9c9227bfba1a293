"""The runs of a comparison in their order: what is there already is not done again, what fails stops nothing else."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kasatune.experiments.compare.executors import Pool
from kasatune.experiments.compare.method_on_task import Cell, Steps
from kasatune.experiments.compare.run_id import Job
from kasatune.experiments.compare.run_store import Finished, Index, read_run


@dataclass
class Progress:
    """How far a comparison has come.

    Attributes:
        planned: runs in all; equal runs of two methods count for each.
        there: of them, finished.
        done_now: done by this process.
        failed: finished without scores.
    """

    planned: int = 0
    there: int = 0
    done_now: int = 0
    failed: int = 0


@dataclass
class _Batch:
    """The runs that a cell waits for before it goes on."""

    cell: Cell
    steps: Steps
    jobs: Sequence[Job]
    results: dict[str, Finished] = field(default_factory=dict)
    handed_on: bool = False


class Engine:
    """Takes the cells of a comparison through their runs.

    The order: task by task; within a task the searches of all methods, then the reported runs, seed by seed, so that
    what a stopped comparison leaves is balanced over the methods.

    Args:
        cells: what is compared.
        runs: folder of the finished runs.
        tell: is told of every run, one line each.
    """

    def __init__(self, cells: Sequence[Cell], runs: Path, tell: Callable[[str], None]) -> None:
        self._runs, self._tell = runs, tell
        self.progress = Progress(planned=sum(cell.number_of_runs for cell in cells))
        self._ready: list[tuple[tuple[int, ...], str]] = []
        self._jobs: dict[str, tuple[Job, str]] = {}
        self._waiting: dict[str, list[_Batch]] = {}
        self._retried: set[str] = set()
        self._tried_again = False
        self._cells = cells

    def read(self) -> Mapping[str, Job]:
        """Go as far as finished runs lead, and give the runs that are wanted next, by ID."""
        for cell in self._cells:
            steps = cell.steps()
            self._go_on(cell, steps, None)
        for batch in {id(one): one for waiting in self._waiting.values() for one in waiting}.values():
            batch.cell.take(batch.jobs, batch.results)
        return {run_id: job for run_id, (job, _) in self._jobs.items()}

    def work(self, pool: Pool, index: Index) -> None:
        """Do every run that is not there yet; the runs whose failure was the machine's are tried once more."""
        self._tried_again = True
        self.read()
        under_way: dict[str, float] = {}
        while self._ready or under_way:
            while self._ready and len(under_way) < pool.slots:
                _, run_id = heapq.heappop(self._ready)
                pool.submit(self._jobs[run_id][0])
                under_way[run_id] = time.monotonic()
            run_id = pool.next()
            seconds = time.monotonic() - under_way.pop(run_id)
            found = read_run(self._runs, run_id)
            assert found is not None
            index.add(found)
            self.progress.done_now += 1
            self._deliver(found, seconds)

    def _deliver(self, found: Finished, seconds: float) -> None:
        batches, (_, what) = self._waiting.pop(found.id), self._jobs.pop(found.id)
        self._count(found, len(batches))
        state = f"{seconds:.0f} s" if found.done else f"failed: {(found.error or '').splitlines()[0]}"
        self._tell(f"{self.progress.there}/{self.progress.planned}  {what}  {state}")
        for batch in batches:
            batch.results[found.id] = found
            self._finish(batch)

    def _finish(self, batch: _Batch) -> None:
        if not batch.handed_on and all(job.id in batch.results for job in batch.jobs):
            batch.handed_on = True
            self._go_on(batch.cell, batch.steps, [batch.results[job.id] for job in batch.jobs])

    def _go_on(self, cell: Cell, steps: Steps, results: Sequence[Finished] | None) -> None:
        try:
            jobs = next(steps) if results is None else steps.send(results)
        except StopIteration:
            if cell.chosen is None:  # every trial failed: the reported runs will never come
                self.progress.planned -= len(cell.request.seeds)
            return
        batch = _Batch(cell, steps, jobs)
        for number, job in enumerate(jobs):
            found = read_run(self._runs, job.id)
            if found is not None and (found.done or found.final or not self._tried_again or job.id in self._retried):
                batch.results[job.id] = found
                self._count(found, 1)
                continue
            self._retried.add(job.id)
            waiting = self._waiting.setdefault(job.id, [])
            waiting.append(batch)
            if len(waiting) == 1:
                self._jobs[job.id] = (job, _words(cell, job))
                task, method = cell.place
                heapq.heappush(self._ready, ((task, int(cell.chosen is not None), number, method), job.id))
        self._finish(batch)

    def _count(self, found: Finished, times: int) -> None:
        self.progress.there += times
        self.progress.failed += 0 if found.done else times


def _words(cell: Cell, job: Job) -> str:
    if cell.chosen is None:
        rate = job.recipe.training.learning_rate
        return f"{cell.title}, search, learning rate {rate:g}"
    return f"{cell.title}, seed {job.recipe.training.seed}"

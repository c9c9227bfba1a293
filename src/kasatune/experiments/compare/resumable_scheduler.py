"""Schedule the runs of a comparison, and resume a stopped one: finished runs are read back, only missing ones execute.

A comparison has no saved state besides its finished runs. Every command plans all runs again, in the same order; a run
whose ID is already in OUT/runs counts as done. A failed run stops no other run.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kasatune.experiments.compare.executors import Executor
from kasatune.experiments.compare.method_on_task import MethodOnTask, RunSteps
from kasatune.experiments.compare.run_id import PlannedRun
from kasatune.experiments.compare.run_store import FinishedRun, read_run


@dataclass
class Progress:
    """Number of runs by state.

    Attributes:
        planned: all runs; a run that two methods share counts for each.
        there: finished runs.
        done_now: runs that this process executed.
        failed: runs that finished without scores.
    """

    planned: int = 0
    there: int = 0
    done_now: int = 0
    failed: int = 0


@dataclass
class _Batch:
    """The runs that a method needs before it can plan its next ones."""

    owner: MethodOnTask
    steps: RunSteps
    runs: Sequence[PlannedRun]
    results: dict[str, FinishedRun] = field(default_factory=dict)
    complete: bool = False


class Scheduler:
    """Takes every method on every task through its runs.

    The order is task by task; within a task the search trials of all methods come first, then the reported runs, seed
    by seed. A stopped comparison therefore has about the same number of runs for each method.

    Args:
        methods: every method on every task.
        runs: folder of the finished runs.
        tell: receives one line for each finished run.
    """

    def __init__(self, methods: Sequence[MethodOnTask], runs: Path, tell: Callable[[str], None]) -> None:
        self._runs, self._tell = runs, tell
        self.progress = Progress(planned=sum(method.number_of_runs for method in methods))
        self._ready: list[tuple[tuple[int, ...], str]] = []
        self._planned: dict[str, tuple[PlannedRun, str]] = {}
        self._waiting: dict[str, list[_Batch]] = {}
        self._retried: set[str] = set()
        self._retry_failed = False
        self._methods = methods

    def read_finished(self) -> Mapping[str, PlannedRun]:
        """Advance every method as far as finished runs allow; return the runs that are needed next, by ID."""
        for method in self._methods:
            self._advance(method, method.steps(), None)
        self.take_finished()
        return {run_id: run for run_id, (run, _) in self._planned.items()}

    def take_finished(self) -> None:
        """Show every method the finished runs of its batch that is not complete, for interim results."""
        for batch in {id(batch): batch for batches in self._waiting.values() for batch in batches}.values():
            batch.owner.take_finished(batch.runs, batch.results)

    def execute_missing(self, executor: Executor) -> None:
        """Execute every run that is not finished; retry once the runs that failed because of the machine."""
        self._retry_failed = True
        self.read_finished()
        started: dict[str, float] = {}
        while self._ready or started:
            while self._ready and len(started) < executor.slots:
                _, run_id = heapq.heappop(self._ready)
                executor.submit(self._planned[run_id][0])
                started[run_id] = time.monotonic()
            run_id = executor.next()
            seconds = time.monotonic() - started.pop(run_id)
            finished = read_run(self._runs, run_id)
            assert finished is not None
            self.progress.done_now += 1
            self._deliver(finished, seconds)

    def _deliver(self, run: FinishedRun, seconds: float) -> None:
        batches, (_, title) = self._waiting.pop(run.id), self._planned.pop(run.id)
        self._count(run, len(batches))
        state = f"{seconds:.0f} s" if run.done else f"failed: {(run.error or '').splitlines()[0]}"
        self._tell(f"{self.progress.there}/{self.progress.planned}  {title}  {state}")
        for batch in batches:
            batch.results[run.id] = run
            self._advance_if_complete(batch)

    def _advance_if_complete(self, batch: _Batch) -> None:
        if not batch.complete and all(run.id in batch.results for run in batch.runs):
            batch.complete = True
            self._advance(batch.owner, batch.steps, [batch.results[run.id] for run in batch.runs])

    def _advance(self, method: MethodOnTask, steps: RunSteps, results: Sequence[FinishedRun] | None) -> None:
        try:
            runs = next(steps) if results is None else steps.send(results)
        except StopIteration:
            runs = None
        self.progress.planned = sum(method.number_of_runs for method in self._methods)  # a search may have grown
        if runs is None:
            return
        batch = _Batch(method, steps, runs)
        for number, run in enumerate(runs):
            finished = read_run(self._runs, run.id)
            if finished is not None and not self._is_to_be_retried(finished):
                batch.results[run.id] = finished
                self._count(finished, 1)
                continue
            self._retried.add(run.id)
            waiting = self._waiting.setdefault(run.id, [])
            waiting.append(batch)
            if len(waiting) == 1:
                self._planned[run.id] = (run, _title(method, run))
                task, column = method.place
                heapq.heappush(self._ready, ((task, int(method.chosen is not None), number, column), run.id))
        self._advance_if_complete(batch)

    def _is_to_be_retried(self, run: FinishedRun) -> bool:
        return self._retry_failed and not run.done and not run.final and run.id not in self._retried

    def _count(self, run: FinishedRun, times: int) -> None:
        self.progress.there += times
        self.progress.failed += 0 if run.done else times


def _title(method: MethodOnTask, run: PlannedRun) -> str:
    if method.chosen is None:
        rate = run.recipe.training.learning_rate
        return f"{method.title}, search, learning rate {rate:g}"
    return f"{method.title}, seed {run.recipe.training.seed}"

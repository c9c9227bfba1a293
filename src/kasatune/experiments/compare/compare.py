"""Run a comparison, or resume a stopped one: from recipes and method names to the content of comparison.json."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kasatune.errors import InputError, KasatuneError
from kasatune.evaluation.task_model import deterministic
from kasatune.experiments.compare.base_run import BaseOnTask
from kasatune.experiments.compare.executors import make_executor
from kasatune.experiments.compare.method_on_task import MethodOnTask
from kasatune.experiments.compare.process_cache import ProcessCache, process_cache
from kasatune.experiments.compare.registration import read_registration
from kasatune.experiments.compare.results import collect_results
from kasatune.experiments.compare.resumable_scheduler import Scheduler
from kasatune.experiments.compare.run_store import existing_runs_folder, locked_comparison, make_runs_folder
from kasatune.experiments.compare.spec import ComparisonSpec
from kasatune.io.library_noise import quiet
from kasatune.training.plan import require_feasible

THREADS = 1
INTERIM_SECONDS = 30.0
INTERIM_SHARE = 0.02
"""Share of the time that interim results may take."""


def compare(
    spec: ComparisonSpec,
    out: Path,
    *,
    workers: int | str = 1,
    threads: int = THREADS,
    gpus: float | None = None,
    keep_adapters: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    command: str = "",
    registered: Path | None = None,
    interim: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Execute every run of a comparison that `out` does not hold yet, and collect the results.

    Args:
        spec: what is compared.
        out: directory of the comparison; finished runs in it are reused.
        workers: 1 to execute runs in this process, a number of worker processes, or "ray".
        threads: CPU threads of each run, whatever executes it; they affect the last digits of a score.
        gpus: GPUs that each run requests from Ray; None requests one if the cluster has any.
        keep_adapters: keep the trained weights of reported runs.
        tell: receives one line for each run.
        command: the command line that repeats the comparison, for comparison.json.
        registered: file with the registered plan of the comparison.
        interim: receives the content of comparison.json for the runs that are finished, every half minute at most.

    Returns:
        The content of comparison.json.

    Raises:
        InputError: a recipe, its data, the output or the registered plan is invalid; no run has started.
        WorkError: worker processes were lost; finished runs are kept.
    """
    cache = process_cache()
    with quiet(tell):
        methods = plan_methods(spec, cache, tell)
        registration = None if registered is None else read_registration(spec, methods, registered)
        runs = make_runs_folder(out)
        with locked_comparison(out), deterministic():

            def collect() -> dict[str, Any]:
                scheduler.take_finished()
                return collect_results(
                    spec, methods, scheduler.progress, threads=threads, command=command, registration=registration
                )

            scheduler = Scheduler(methods, runs, tell if interim is None else _Interim(tell, collect, interim))
            executor = make_executor(
                workers, runs, cache, threads=threads, keep_adapters=keep_adapters, gpus=gpus, tell=tell
            )
            try:
                scheduler.execute_missing(executor)
            finally:
                executor.close()
        return collect_results(
            spec, methods, scheduler.progress, threads=threads, command=command, registration=registration
        )


class _Interim:
    """Receives one line for each run, and collects interim results after it if the last ones are old.

    Args:
        tell: receives the line.
        collect: the results so far.
        interim: receives them.
    """

    def __init__(
        self, tell: Callable[[str], None], collect: Callable[[], dict[str, Any]], interim: Callable[[Any], object]
    ) -> None:
        self._tell, self._collect, self._interim = tell, collect, interim
        self._next = time.monotonic() + INTERIM_SECONDS

    def __call__(self, text: str) -> None:
        self._tell(text)
        begun = time.monotonic()
        if begun < self._next:
            return
        self._interim(self._collect())
        now = time.monotonic()
        self._next = now + max(INTERIM_SECONDS, (now - begun) / INTERIM_SHARE)


def collect_finished(
    spec: ComparisonSpec,
    out: Path,
    *,
    threads: int = THREADS,
    command: str = "",
    registered: Path | None = None,
    cache: ProcessCache | None = None,
) -> dict[str, Any]:
    """The content of comparison.json for the runs that `out` holds, without executing any.

    Another process may be executing the comparison at the same time.

    Raises:
        InputError: a recipe or its data is invalid, or `out` holds no comparison.
    """
    runs = existing_runs_folder(out)
    with quiet():
        methods = plan_methods(spec, cache or process_cache(), lambda text: None)
        scheduler = Scheduler(methods, runs, lambda text: None)
        registration = None if registered is None else read_registration(spec, methods, registered)
        scheduler.read_finished()
        return collect_results(
            spec, methods, scheduler.progress, threads=threads, command=command, registration=registration
        )


def plan_methods(spec: ComparisonSpec, cache: ProcessCache, tell: Callable[[str], None]) -> list[MethodOnTask]:
    """Every method on every task, with its rows loaded and its feasibility checked.

    Raises:
        InputError: every reason why a run would fail, for all methods on all tasks at once.
    """
    problems: list[str] = []
    methods = []
    for row, task in enumerate(spec.tasks):
        data = cache.data(task.recipe)
        for note in data.notes:
            tell(f"{task.name}: {note}")
        search_data = cache.search_data(task.recipe) if spec.search.trials > 1 else data
        if data.kind == "generation":
            first = next(variant for variant in spec.variants if spec.takes_part(task, variant))
            methods.append(BaseOnTask(spec, task, first, (row, -1), data, search_data))
        for column, variant in enumerate(spec.variants):
            if not spec.takes_part(task, variant):
                continue
            methods.append(MethodOnTask(spec, task, variant, (row, column), data, search_data))
            try:
                require_feasible(spec.recipe(task, variant, spec.seeds[0], {}))
            except KasatuneError as fault:
                problems.append(f"{variant.text} on {task.name}: {fault}")
    if problems:
        raise InputError("the comparison would fail:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return methods

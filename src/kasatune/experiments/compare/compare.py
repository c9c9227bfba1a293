"""A comparison: from recipes and names of methods to comparison.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kasatune.errors import InputError, KasatuneError
from kasatune.evaluation.task_model import deterministic
from kasatune.experiments.compare.executors import make_pool, shared_here
from kasatune.experiments.compare.method_on_task import Cell
from kasatune.experiments.compare.process_cache import Shared
from kasatune.experiments.compare.results import gather
from kasatune.experiments.compare.resumable_scheduler import Engine
from kasatune.experiments.compare.run_store import RUNS, open_folder, open_index
from kasatune.experiments.compare.spec import Request
from kasatune.io.library_noise import quiet
from kasatune.training.plan import require_feasible

THREADS = 1


def compare(
    request: Request,
    out: Path,
    *,
    workers: int | str = 1,
    threads: int = THREADS,
    gpus: float | None = None,
    keep_adapters: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    command: str = "",
) -> dict[str, Any]:
    """Do every run of a comparison that `out` does not hold yet, and gather what came out.

    Args:
        request: what is compared.
        out: its directory; runs that are finished there are not done again.
        workers: 1 for one run after the other, a number of processes, or "ray".
        threads: of the processor, for each run, however the runs are spread: it decides the last digits of a score.
        gpus: that a run asks Ray for; None for one where the cluster has any.
        keep_adapters: keep the trained weights of reported runs.
        tell: is told of every run.
        command: for comparison.json: what makes it again.

    Returns:
        The content of comparison.json.

    Raises:
        InputError: a recipe, its data or the output is wrong; no run has been begun then.
        WorkError: workers were lost; finished runs are kept.
    """
    shared = shared_here()
    with quiet(tell):
        cells = make_cells(request, shared, tell)
        runs = open_folder(out)
        with open_index(out) as index, deterministic():
            engine = Engine(cells, runs, tell)
            pool = make_pool(workers, runs, shared, threads=threads, keep_adapters=keep_adapters, gpus=gpus, tell=tell)
            try:
                engine.work(pool, index)
            finally:
                pool.close()
        return gather(request, cells, engine.progress, threads=threads, command=command)


def gather_finished(
    request: Request, out: Path, *, threads: int = THREADS, command: str = "", shared: Shared | None = None
) -> dict[str, Any]:
    """comparison.json of the runs that `out` holds, without doing any; the comparison may be under way elsewhere.

    Raises:
        InputError: a recipe or its data is wrong, or `out` holds no comparison.
    """
    runs = existing_runs(out)
    with quiet():
        cells = make_cells(request, shared or shared_here(), lambda text: None)
        engine = Engine(cells, runs, lambda text: None)
        engine.read()
        return gather(request, cells, engine.progress, threads=threads, command=command)


def existing_runs(out: Path) -> Path:
    """OUT/runs of a comparison that is there.

    Raises:
        InputError: there is none.
    """
    if not (out / RUNS).is_dir():
        raise InputError(f"{out} holds no comparison; run it first, without --report-only")
    return out / RUNS


def make_cells(request: Request, shared: Shared, tell: Callable[[str], None]) -> list[Cell]:
    """Every method on every task, with its rows read and its feasibility checked.

    Raises:
        InputError: every reason why a run would fail, of all methods on all tasks at once.
    """
    problems: list[str] = []
    cells = []
    for number, task in enumerate(request.tasks):
        data = shared.data(task.recipe)
        for note in data.notes:
            tell(f"{task.name}: {note}")
        held_out = shared.search_data(task.recipe) if request.search.trials > 1 else data
        for place, variant in enumerate(request.variants):
            cells.append(Cell(request, task, variant, (number, place), data, held_out))
            try:
                require_feasible(request.recipe(task, variant, request.seeds[0], {}))
            except KasatuneError as fault:
                problems.append(f"{variant.text} on {task.name}: {fault}")
    if problems:
        raise InputError("the comparison would fail:\n" + "\n".join(f"  - {problem}" for problem in problems))
    return cells

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from kasatune.data.tasks import load_evaluation, load_task
from kasatune.data.tasks.dataset import TaskData
from kasatune.errors import DataError
from kasatune.evaluation.task_model import TaskModel, deterministic
from kasatune.io.environment import peak_memory, reset_peak_memory, versions
from kasatune.io.library_noise import quiet
from kasatune.recipes.schema import TaskSection
from kasatune.runs.directory import read_metrics, read_recipe
from kasatune.runs.provenance import trace


def evaluate(run_dir: Path, split: str | None = None, data: str | None = None) -> dict[str, Any]:
    """The scores of a run again, from its saved files alone.

    Args:
        run_dir: of a run that was finished, or interrupted.
        split: which rows; None for those that metrics.json tells of.
        data: rows to use in the place of those that the recipe names: the folder of a benchmark, or a file in the form
            of your own validation data; their split is "validation".

    Returns:
        An object in the form of metrics.json; `metrics` is the same as there for the same rows, bit for bit on the
        same machine.

    Raises:
        InputError: the directory, its files, the base model, the data or the split is not to be had.
    """
    run_dir = Path(run_dir)
    recipe, before = read_recipe(run_dir), read_metrics(run_dir)
    names = tuple(before["label_names"]) if before.get("label_names") else None
    with quiet(), deterministic():
        start = time.perf_counter()
        reset_peak_memory()
        task = _rows(recipe.task, data, names)
        prepared = TaskModel.for_saved_run(recipe, before["kind"], names, run_dir)
        loaded = time.perf_counter()
        chosen = split or str(before["split"])
        scores = prepared.final_score(prepared.encode(task, chosen), task, chosen)
    seconds = {"load": loaded - start, "evaluate": time.perf_counter() - loaded}
    return {
        **before,
        "split": chosen,
        "metrics": scores.metrics,
        "data_source": task.source,
        "data_sha256": task.sha256,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_memory_bytes": peak_memory(),
        "versions": versions(),
        **trace(recipe, prepared.base.revision, prepared.base.fingerprint),
    }


def _rows(task: TaskSection, data: str | None, names: tuple[str, ...] | None) -> TaskData:
    """The rows to score, their labels numbered as the model knows them."""
    if data is not None:
        return load_evaluation(task, data, names)
    found = load_task(task)
    if found.label_names != names:
        raise DataError(
            f"task {found.name}: its labels are now {_listed(found.label_names)}, the model was trained on "
            f"{_listed(names)}: the data has changed; give the rows as they were, or train again"
        )
    return found


def _listed(names: tuple[str, ...] | None) -> str:
    return "numbers" if names is None else ", ".join(map(repr, names))

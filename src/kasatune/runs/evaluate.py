from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kasatune.errors import DataError
from kasatune.runs.directory import read_metrics, read_recipe
from kasatune.runs.machine import peak_memory, reset_peak_memory, versions
from kasatune.runs.prepare import deterministic, prepare_saved
from kasatune.runs.quiet import quiet
from kasatune.runs.recipe import TaskSection
from kasatune.tasks import TaskData, load_task
from kasatune.tasks.data import Rows


def evaluate(run_dir: Path, split: str | None = None, data: str | None = None) -> dict[str, Any]:
    """The scores of a run again, from its saved files alone.

    Args:
        run_dir: of a run that was finished, or interrupted.
        split: which rows; None for those that metrics.json tells of.
        data: rows to use in the place of those that the recipe names: the folder of a benchmark, or a file in the form
            of your own validation data.

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
        task = with_labels(load_task(_section(recipe.task, data)), names)
        prepared = prepare_saved(recipe, before["kind"], names, run_dir)
        loaded = time.perf_counter()
        chosen = split or str(before["split"])
        scores = prepared.score(prepared.encode(task, chosen), task)
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
    }


def with_labels(data: TaskData, names: Sequence[str] | None) -> TaskData:
    """`data` with its labels numbered as in `names`, the order that the model was trained with.

    Raises:
        DataError: `data` has a label that the model does not know.
    """
    if names is None or data.label_names is None or tuple(data.label_names) == tuple(names):
        return data
    unknown = [name for name in data.label_names if name not in names]
    if unknown:
        raise DataError(
            f"task {data.name}: the labels {', '.join(map(repr, unknown))} are unknown to the model, "
            f"which was trained on {', '.join(map(repr, names))}; remove those rows, or train again"
        )
    number = {old: names.index(name) for old, name in enumerate(data.label_names)}
    splits = {
        split: Rows(rows.first, rows.second, [number[int(label)] for label in rows.labels])
        for split, rows in data.splits.items()
    }
    return replace(data, label_names=tuple(names), splits=splits)


def _section(task: TaskSection, data: str | None) -> TaskSection:
    """The recipe's task with `data` in the place of its rows."""
    if data is None:
        return task
    own = task.train is not None
    return task.model_copy(update={"train": data, "validation": data} if own else {"data": data})

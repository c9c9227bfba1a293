"""Score a run again from its saved files, and compare its scores, rows and base model with those in metrics.json."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kasatune.data.tasks import load_evaluation, load_part_evaluation, load_task
from kasatune.data.tasks.dataset import TaskData
from kasatune.data.tasks.table import TASKS
from kasatune.data.tokenize_pairs import with_reference
from kasatune.errors import DataError, InputError, KasatuneError
from kasatune.evaluation.predict import choose_part
from kasatune.evaluation.stored_reference import read_reference, with_initial_reference
from kasatune.evaluation.task_model import TaskModel, deterministic
from kasatune.io.atomic import finite
from kasatune.io.environment import peak_memory, reset_peak_memory, versions
from kasatune.io.library_noise import quiet
from kasatune.io.run_layout import METRICS
from kasatune.metrics.generation import OPTIONAL_SCORES, generation_scores, require_scores, signatures
from kasatune.recipes.schema import TaskSection
from kasatune.runs.directory import read_recipe
from kasatune.runs.metrics import read_metrics
from kasatune.runs.provenance import recipe_sha256, trace

SCORE_TOLERANCE = 5e-3  # of a score on another machine or with other software

CheckLine = tuple[str, bool | None, str]
"""Name of a check, whether it passed (None: could not be checked), and its figures in words."""


def evaluate(
    run_dir: Path,
    split: str | None = None,
    data: str | None = None,
    extra_scores: Sequence[str] = (),
    *,
    base: str | None = None,
    part: str | None = None,
) -> dict[str, Any]:
    """Score a run again, from its saved files alone.

    Args:
        run_dir: directory of a run that has finished or was interrupted.
        split: the rows to score; None for the split of metrics.json.
        data: rows to score instead of those that the recipe names: the folder of a benchmark, or a file in the form of
            your own validation data; their split is "validation".
        extra_scores: optional scores of generated text to compute besides the task's, such as "meteor_exact_stem".
        base: where the base model is now, if not where the recipe says.
        part: of a run on a mixture, the part to score alone, or whose rows `data` holds; None for all parts.

    Returns:
        An object in the form of metrics.json; `metrics` is bit for bit the same as there for the same rows on the same
        machine.

    Raises:
        InputError: the directory, its files, the base model, the data or the split is missing or damaged.
    """
    run_dir = Path(run_dir)
    recipe, before = read_recipe(run_dir), read_metrics(run_dir)
    names = tuple(before["label_names"]) if before.get("label_names") else None
    extra = _extra_scores(recipe.task.name, before, extra_scores)
    with quiet(), deterministic():
        start = time.perf_counter()
        reset_peak_memory()
        if part is not None:
            choose_part(recipe, part)
        task = _load_rows(recipe.task, data, names, part)
        chosen = split or str(before["split"])
        if part is not None and data is None:
            chosen = part if chosen == "validation" else f"{part}/{chosen}"
        task.require_split(chosen)
        task_model = TaskModel.for_saved_run(recipe, names, run_dir, base=base)
        loaded = time.perf_counter()
        examples = task_model.encode(task, chosen)
        if task_model.info.compares_with_reference:
            known = read_reference(run_dir, examples, chosen)
            examples = (
                with_initial_reference(recipe, load_task(recipe.task), run_dir, examples, base)
                if known is None
                else with_reference(examples, *known)
            )
        scores = task_model.final_score(examples, task, chosen)
        extra_metrics = generation_scores(extra, scores.predictions, scores.labels) if extra else {}
    seconds = {"load": loaded - start, "evaluate": time.perf_counter() - loaded}
    return {
        **before,
        "split": chosen,
        "metrics": {**scores.metrics, **extra_metrics},
        **({"signatures": settings} if (settings := signatures(scores.metrics, scores.labels)) else {}),
        "data_source": task.source,
        "data_sha256": task.sha256,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_memory_bytes": peak_memory(),
        "versions": versions(),
        **trace(recipe, recipe.model.revision if base else task_model.base.revision, task_model.base.fingerprint),
    }


def _extra_scores(task: str, recorded: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The optional scores to compute: those in `names`, and those that the run recorded."""
    unknown = [name for name in names if name not in OPTIONAL_SCORES]
    if unknown:
        raise InputError(f"{', '.join(unknown)}: not an optional score; choose from {', '.join(OPTIONAL_SCORES)}")
    if names and "bleu" not in TASKS[task].metrics:
        raise InputError(f"{', '.join(names)}: compares texts with references, which task {task} does not have")
    known = [name for name in OPTIONAL_SCORES if name in (recorded.get("metrics") or {})]
    extra = list(dict.fromkeys([*known, *names]))
    require_scores(extra)
    return extra


def check_recorded_scores(run_dir: Path, base: str | None = None) -> Iterator[CheckLine]:
    """Compare recipe, rows, base model and scores of a run, computed again, with metrics.json.

    On the machine and with the software of the run the scores must be equal bit for bit; elsewhere they may differ by
    0.005. What cannot be checked gives None: a run of an earlier version, rows that are not on this machine.

    Args:
        run_dir: directory of the run.
        base: where the base model is now, if not where the recipe says.

    Raises:
        InputError: recipe.yaml or metrics.json is missing or damaged.
    """
    before = read_metrics(run_dir)
    yield "recipe", *_compare_sha256(recipe_sha256(read_recipe(run_dir)), before.get("recipe_sha256"))
    try:
        after = finite(evaluate(run_dir, base=base))
    except DataError as fault:
        yield "scores", None, f"not computed again: {fault}"
        return
    except KasatuneError as fault:
        yield "scores", False, str(fault)
        return
    yield "rows", *_compare_sha256(after["data_sha256"], before.get("data_sha256"))
    yield "base model", *_compare_sha256(_fingerprint(after), _fingerprint(before))
    yield "scores", *_compare_scores(before, after)


def is_run(directory: Path) -> bool:
    """Whether a directory holds a run with recorded metrics."""
    try:
        read_metrics(directory)
    except InputError:
        return False
    return True


def _load_rows(task: TaskSection, data: str | None, names: tuple[str, ...] | None, part: str | None) -> TaskData:
    """The rows to score, with their labels numbered as in training."""
    if data is not None and part is not None:
        return load_part_evaluation(task, part, data)
    if data is not None:
        return load_evaluation(task, data, names)
    rows = load_task(task)
    if rows.label_names != names:
        raise DataError(
            f"task {rows.name}: its labels are now {_listed(rows.label_names)}, but the model was trained on "
            f"{_listed(names)}; restore the data that it was trained on, or train again"
        )
    return rows


def _listed(names: tuple[str, ...] | None) -> str:
    return "numbers" if names is None else ", ".join(map(repr, names))


def _compare_sha256(value: str, recorded: str | None) -> tuple[bool | None, str]:
    if not recorded:
        return None, f"not recorded in {METRICS}"
    words = f"SHA-256 {value[:12]}..."
    if value == recorded:
        return True, f"{words} as recorded"
    return False, f"{words}, recorded was {recorded[:12]}..."


def _fingerprint(metrics: Mapping[str, Any]) -> str:
    model = metrics.get("model")
    return str(model.get("fingerprint") or "") if isinstance(model, Mapping) else ""


def _compare_scores(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[bool | None, str]:
    recorded, computed = before.get("metrics") or {}, after["metrics"]
    if not recorded:
        return None, "the run was stopped before it had scores"
    if recorded == computed:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in computed.items() if value is not None)
        return True, f"{shown}: equal bit for bit"
    worst, name = max((_distance(value, computed.get(name)), name) for name, value in recorded.items())
    figure = f"{name} was {recorded[name]} and is {computed.get(name)}"
    differing = [key for key in ("machine", "versions") if before.get(key) != after.get(key)]
    if not differing:
        return False, figure
    return worst <= SCORE_TOLERANCE, f"{figure}; another {' and other '.join(differing)}, limit {SCORE_TOLERANCE:g}"


def _distance(first: Any, second: Any) -> float:
    if first is None or second is None:
        return 0.0 if first is second else math.inf
    return abs(float(first) - float(second))

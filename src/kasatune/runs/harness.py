"""A run's model in EleutherAI's lm-evaluation-harness, by the stock LoRA adapter that the run wrote."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kasatune.errors import InputError, MissingExtraError, WorkError
from kasatune.methods.adapter import ADAPTER_FOLDER
from kasatune.runs.directory import read_metrics, read_recipe
from kasatune.runs.models import find_model
from kasatune.runs.quiet import quiet
from kasatune.runs.recipe import Recipe
from kasatune.runs.recipe_faults import did_you_mean
from kasatune.runs.trainer import find_device

_STDERR = "_stderr"


def harness(
    run_dir: Path, tasks: Sequence[str], *, path: Path | None = None, limit: int | None = None
) -> dict[str, Any]:
    """Scores of tasks of lm-eval, its model "hf" with the run's base and `peft=` RUN/adapter.

    The base is loaded in the recipe's dtype, and not quantized whatever the recipe says. `training.eval_batch_size`
    requests are answered at a time.

    Args:
        run_dir: of a finished run of a task that writes text.
        tasks: names of lm-eval's tasks or groups, or of those in `path`.
        path: a folder with task files of your own.
        limit: rows of each task, the first ones; None for all.

    Returns:
        An object in the form of metrics.json: `metrics` by "task score", and under `harness` what lm-eval gave.

    Raises:
        InputError: the run is none of a language model, or has no stock adapter; a task is unknown.
        MissingExtraError: lm-eval is not installed.
        WorkError: a task's data could not be had, or lm-eval failed.
    """
    recipe, metrics = read_recipe(run_dir), read_metrics(run_dir)
    if metrics.get("kind") != "generation":
        raise InputError(f"{run_dir}: --harness asks language models; this run is of {metrics.get('kind')}")
    adapter = run_dir / ADAPTER_FOLDER
    if not (adapter / "adapter_config.json").is_file():
        raise InputError(f"{run_dir}: the method {recipe.method.name} wrote no {ADAPTER_FOLDER}/; lm-eval needs a LoRA")
    if path is not None and not path.is_dir():
        raise InputError(f"--harness-path: {str(path)!r}: no such folder; give one with task files (.yaml) of lm-eval")
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("--harness", "harness")
    with quiet():
        manager = _manager(tasks, path)
        found = _evaluate(recipe, adapter, tasks, manager, limit)
    return _told(metrics, found)


def _manager(tasks: Sequence[str], path: Path | None) -> Any:
    """lm-eval's index of tasks; its own thousands are read only where the folder of the user lacks one."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if path is None else str(path), include_defaults=path is None)
    if path is not None and not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=str(path))
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        near = did_you_mean(unknown[0], manager.all_tasks) or "; `lm-eval ls tasks` lists them"
        raise InputError(f"--harness: {unknown[0]!r} is not a task of lm-eval{near}")
    return manager


def _evaluate(recipe: Recipe, adapter: Path, tasks: Sequence[str], manager: Any, limit: int | None) -> dict[str, Any]:
    import lm_eval

    simple_evaluate: Any = lm_eval.simple_evaluate
    section = recipe.model
    arguments: dict[str, Any] = {
        "pretrained": find_model(section.name),
        "peft": str(adapter),
        "dtype": section.dtype,
        "trust_remote_code": section.trust_remote_code,
        **({"revision": section.revision} if section.revision else {}),
    }
    try:
        return simple_evaluate(
            model="hf",
            model_args=arguments,
            tasks=list(tasks),
            batch_size=recipe.training.eval_batch_size,
            device=str(find_device(recipe.training)),
            limit=limit,
            task_manager=manager,
            bootstrap_iters=1000,
            log_samples=False,
        )
    except Exception as fault:  # lm-eval, datasets and the hub client raise dozens of unrelated types
        reason = (str(fault).strip().splitlines() or [""])[0]
        raise WorkError(f"lm-eval failed on {', '.join(tasks)}: {type(fault).__name__}: {reason}") from fault


def _told(metrics: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    from importlib.metadata import version

    scores, errors = {}, {}
    for task, values in found["results"].items():
        for key, value in values.items():
            name, comma, kind = key.partition(",")
            if comma and isinstance(value, int | float):
                kept = errors if name.endswith(_STDERR) else scores
                shown = f"{task} {name.removesuffix(_STDERR)}"
                kept[shown if kind == "none" else f"{shown} ({kind})"] = float(value)
    kept_keys = ("task", "kind", "method", "trainable_parameters", "head_parameters")
    return {
        **{key: metrics[key] for key in kept_keys if key in metrics},
        "split": "lm-eval",
        "metrics": scores,
        "harness": {
            "standard_errors": errors,
            "rows": found.get("n-samples", {}),
            "shots": found.get("n-shot", {}),
            "task_versions": found.get("versions", {}),
            "lm_eval": version("lm_eval"),
        },
    }

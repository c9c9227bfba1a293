"""A run's model in EleutherAI's lm-evaluation-harness, by the stock LoRA adapter that the run wrote."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kasatune.data.chat_template import PLAIN_TEMPLATE, has_template
from kasatune.errors import InputError, MissingExtraError, WorkError
from kasatune.io.library_noise import quiet
from kasatune.methods.shared.peft_adapter import ADAPTER_FOLDER
from kasatune.models.device import find_device
from kasatune.models.load import find_model
from kasatune.recipes.messages import did_you_mean
from kasatune.recipes.schema import Recipe
from kasatune.runs.directory import read_metrics, read_recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kasatune.recipes.schema import ModelSection

CHATS = "instruction"
_STDERR = "_stderr"
_EXTRA = "pip install 'kasatune[harness]'"


def harness(
    run_dir: Path, tasks: Sequence[str], *, path: Path | None = None, limit: int | None = None
) -> dict[str, Any]:
    """Scores of tasks of lm-eval, its model "hf" with the run's base and `peft=` RUN/adapter.

    The base is loaded in the recipe's dtype, and not quantized whatever the recipe says. `training.eval_batch_size`
    requests are answered at a time. A run of the task instruction is asked through the chat template that it was
    trained with: its model's own, or `PLAIN_TEMPLATE` where there is none.

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
        WorkError: a task's data could not be had, or lm-eval or a package that the task needs failed.
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
    return _told(metrics, found, chats=recipe.task.name == CHATS)


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
    section, chats = recipe.model, recipe.task.name == CHATS
    arguments: dict[str, Any] = {
        "pretrained": find_model(section.name),
        "peft": str(adapter),
        "dtype": section.dtype,
        "trust_remote_code": section.trust_remote_code,
        **({"revision": section.revision} if section.revision else {}),
        # The template writes every special token itself, as in training.
        **({"tokenizer": _with_template(section), "add_bos_token": False} if chats else {}),
    }
    try:
        with redirect_stdout(StringIO()):  # tasks print of downloads, also of those that failed
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
                apply_chat_template=chats,
            )
    except ModuleNotFoundError as fault:
        raise WorkError(
            f"--harness: {', '.join(tasks)} needs {fault.name}, which is not installed: {_EXTRA}"
        ) from fault
    except Exception as fault:  # lm-eval, datasets and the hub client raise dozens of unrelated types
        reason = next((line.strip() for line in str(fault).splitlines() if any(map(str.isalnum, line))), "")
        remedy = "check the network, or bring its rows into the cache of datasets" if _is_unreachable(fault) else ""
        raise WorkError(
            f"lm-eval failed on {', '.join(tasks)}: {type(fault).__name__}: {reason}{remedy and f'; {remedy}'}"
        ) from fault


def _with_template(section: ModelSection) -> PreTrainedTokenizerBase:
    """The base's tokenizer, with the template that an instruction run of it was trained with."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        find_model(section.name), revision=section.revision, trust_remote_code=section.trust_remote_code
    )
    if not has_template(tokenizer):
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def _is_unreachable(fault: Exception) -> bool:
    """Whether the rows of a task could not be fetched: datasets raises one of these."""
    from datasets.exceptions import DatasetNotFoundError

    return isinstance(fault, (ConnectionError, FileNotFoundError, DatasetNotFoundError))


def _told(metrics: dict[str, Any], found: dict[str, Any], *, chats: bool) -> dict[str, Any]:
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
            "chat_template": chats,
            "task_versions": found.get("versions", {}),
            "lm_eval": version("lm_eval"),
        },
    }

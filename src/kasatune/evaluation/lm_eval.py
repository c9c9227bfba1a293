"""Evaluate a run on tasks of EleutherAI's lm-evaluation-harness, through the stock LoRA adapter that the run wrote."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kasatune.data.chat_template import answer_end, set_chat_template
from kasatune.data.tasks.mixture_parts import reads_chats
from kasatune.errors import InputError, KasatuneError, MissingExtraError, WorkError
from kasatune.evaluation.generate import end_tokens
from kasatune.evaluation.known_tokens import only_known_tokens
from kasatune.io.library_noise import quiet
from kasatune.io.model_location import find_model
from kasatune.io.run_layout import ADAPTER
from kasatune.models.device import find_device
from kasatune.models.gguf import fast_reading, make_plain, weight_options
from kasatune.models.load import download_gguf, find_pretrained, read_tokenizer
from kasatune.models.moved_base import base_errors, with_base
from kasatune.recipes.messages import did_you_mean
from kasatune.recipes.schema import Recipe
from kasatune.runs.directory import read_recipe
from kasatune.runs.metrics import read_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_STDERR = "_stderr"
_EXTRA = "pip install 'kasatune[harness]'"


def harness(
    run_dir: Path,
    tasks: Sequence[str],
    *,
    path: Path | None = None,
    limit: int | None = None,
    base: str | None = None,
) -> dict[str, Any]:
    """Scores of lm-eval's tasks, from its model "hf" around the run's base with RUN/adapter.

    The base is loaded in the recipe's dtype and is never quantized, whatever the recipe says. Requests are answered in
    batches of `training.eval_batch_size`. A run on chat rows is asked through the chat template that it was trained
    with: the model's own, or `PLAIN_TEMPLATE` if it has none.

    Args:
        run_dir: directory of a finished run on a task that generates text.
        tasks: names of lm-eval's tasks or groups, or of those in `path`.
        path: a folder with the user's own task files.
        limit: number of rows of each task, from the first; None for all.
        base: where the base model is now, if not where the recipe says.

    Returns:
        An object in the form of metrics.json, with `metrics` by "task score", and under `harness` further results of
        lm-eval.

    Raises:
        InputError: the run is not of a language model or has no stock adapter, a task is unknown, or the model has no
            embedding for a token of its text.
        MissingExtraError: lm-eval is not installed.
        WorkError: a task's data cannot be read, or lm-eval or a package that the task needs failed.
    """
    recipe, metrics = with_base(read_recipe(run_dir), base), read_metrics(run_dir)
    if metrics.get("kind") != "generation":
        raise InputError(f"{run_dir}: --harness evaluates language models; this run is a {metrics.get('kind')}")
    adapter = run_dir / ADAPTER
    if not (adapter / "adapter_config.json").is_file():
        raise InputError(f"{run_dir}: the method {recipe.method.name} wrote no {ADAPTER}/; lm-eval needs a LoRA")
    if path is not None and not path.is_dir():
        raise InputError(f"--harness-path: {str(path)!r}: no such folder; give one with task files (.yaml) of lm-eval")
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("--harness", "harness")
    with quiet(), base_errors(base):
        find_pretrained(recipe.model)
        manager = _manager(tasks, path)
        results = _evaluate(recipe, adapter, tasks, manager, limit)
    return _as_metrics(metrics, results, chats=_reads_chats(recipe))


def _reads_chats(recipe: Recipe) -> bool:
    return reads_chats(recipe.task)


def _manager(tasks: Sequence[str], path: Path | None) -> Any:
    """lm-eval's index of tasks; its own thousands of tasks are read only if the user's folder lacks one."""
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
    from lm_eval.models.huggingface import HFLM

    simple_evaluate: Any = lm_eval.simple_evaluate
    make_model: Any = HFLM
    chats = _reads_chats(recipe)
    try:
        # lm-eval itself would resize the embeddings to the size of the tokenizer, which changes every probability.
        adapted, tokenizer = _load(recipe, adapter, chats=chats)
        with redirect_stdout(StringIO()):  # tasks print about downloads, including failed ones
            model: Any = make_model(
                pretrained=adapted,
                tokenizer=tokenizer,
                batch_size=recipe.training.eval_batch_size,
                # A chat template adds every special token itself, as in training.
                add_bos_token=False if chats else None,
            )
            with only_known_tokens(adapted, tokenizer):
                return simple_evaluate(
                    model=model,
                    tasks=list(tasks),
                    limit=limit,
                    task_manager=manager,
                    bootstrap_iters=1000,
                    log_samples=False,
                    apply_chat_template=chats,
                )
    except KasatuneError:
        raise
    except ModuleNotFoundError as fault:
        raise WorkError(
            f"--harness: {', '.join(tasks)} needs {fault.name}, which is not installed: {_EXTRA}"
        ) from fault
    except Exception as fault:  # lm-eval, datasets and the hub client raise dozens of unrelated types
        reason = next((line.strip() for line in str(fault).splitlines() if any(map(str.isalnum, line))), "")
        remedy = "check the network, or download its rows into the cache of datasets" if _is_unreachable(fault) else ""
        raise WorkError(
            f"lm-eval failed on {', '.join(tasks)}: {type(fault).__name__}: {reason}{remedy and f'; {remedy}'}"
        ) from fault


def _load(recipe: Recipe, adapter: Path, *, chats: bool) -> tuple[Any, PreTrainedTokenizerBase]:
    """The base with the adapter, on the recipe's device, and its tokenizer with the chat template of the training."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    section = recipe.model
    options: dict[str, Any] = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    location = download_gguf(find_model(section.base_name), section.revision)
    tokenizer = read_tokenizer(location, **options)
    with fast_reading(location):
        options |= weight_options(location)
        base = AutoModelForCausalLM.from_pretrained(location.path, dtype=section.dtype, **options)
    make_plain(base)
    if chats:
        set_chat_template(tokenizer, recipe.task.template)
        end = answer_end(tokenizer)
        base.generation_config.eos_token_id = end_tokens(base, tokenizer, None if end is None else end.token)
    adapted: Any = PeftModel.from_pretrained(base, str(adapter))
    return adapted.to(find_device(recipe.training)), tokenizer


def _is_unreachable(fault: Exception) -> bool:
    """Whether the rows of a task could not be downloaded, for which datasets raises one of these errors."""
    from datasets.exceptions import DatasetNotFoundError

    return isinstance(fault, (ConnectionError, FileNotFoundError, DatasetNotFoundError))


def _as_metrics(metrics: dict[str, Any], results: dict[str, Any], *, chats: bool) -> dict[str, Any]:
    from importlib.metadata import version

    scores, errors = {}, {}
    for task, values in results["results"].items():
        for key, value in values.items():
            name, comma, kind = key.partition(",")
            if comma and isinstance(value, int | float):
                target = errors if name.endswith(_STDERR) else scores
                shown = f"{task} {name.removesuffix(_STDERR)}"
                target[shown if kind == "none" else f"{shown} ({kind})"] = float(value)
    shared_keys = ("task", "kind", "method", "trainable_parameters", "head_parameters")
    return {
        **{key: metrics[key] for key in shared_keys if key in metrics},
        "split": "lm-eval",
        "metrics": scores,
        "harness": {
            "standard_errors": errors,
            "rows": results.get("n-samples", {}),
            "shots": results.get("n-shot", {}),
            "chat_template": chats,
            "task_versions": results.get("versions", {}),
            "lm_eval": version("lm_eval"),
        },
    }

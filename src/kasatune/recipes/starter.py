"""Write a commented recipe to start from: `kasatune init`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kasatune.data.readers.answer_pairs import columns_of_pairs
from kasatune.data.readers.conversations import columns_of_chats
from kasatune.data.readers.hub import HUB
from kasatune.data.readers.tables import column_names
from kasatune.data.tasks.table import TASKS
from kasatune.errors import InputError, OutputError
from kasatune.methods.table import DEFAULT_METHOD
from kasatune.recipes.messages import did_you_mean
from kasatune.recipes.schema import SECTIONS, Recipe
from kasatune.recipes.yaml_io import inline_yaml, parse_yaml

HELD_OUT = 0.1
"""Share of the training rows that is held out where no validation file is given."""

# Names of columns that usually hold what a key of the task names.
_USUAL_COLUMNS = {
    "text": ("text", "sentence", "content", "review", "question", "input", "premise"),
    "label": ("label", "labels", "class", "category", "sentiment", "target", "score", "rating", "stars", "answer", "y"),
    "prompt": ("prompt", "instruction", "question", "input", "source"),
    "completion": ("completion", "output", "response", "answer", "target"),
}
# Keys that are worth a look, shown as comments with their default.
_SHOWN: dict[str, Sequence[str]] = {
    "model": ("dtype", "quantization"),
    "task": ("max_length", "max_train"),
    "method": ("alpha", "dropout"),
    "training": ("batch_size", "gradient_accumulation", "max_steps", "eval_steps", "patience", "precision", "seed"),
    "generation": ("num_beams",),
}
_LEARNING_RATE = 5e-4
_LEARNING_RATE_OF_AKASA = 1e-3  # its update keeps out of the strongest directions, and a larger rate forgets little
_LEARNING_RATE_OF_PREFERENCE = 2e-5  # larger steps leave the reference before beta holds the model back


def starter_recipe(
    task: str,
    model: str,
    data: str | None,
    *,
    validation: str | None = None,
    corpus: str | None = None,
    method: str | None = None,
    output: str = "",
) -> str:
    """The text of a recipe, which is validated here with the files that it names.

    Args:
        task: name of a task.
        model: hub id, folder, GGUF file or package:NAME.
        data: the training file of a task that reads your own files, the folder of a benchmark, or None for the hub.
        validation: a validation file; None to hold out a share of the training rows.
        corpus: the documents of a task that retrieves passages.
        method: name of a method; None for `akasa` on tasks of language models, `kasa` on others.
        output: run directory; "" for runs/TASK-METHOD.

    Raises:
        InputError: the task does not exist, or its columns cannot be told from the names in the file.
        RecipeError: the recipe has faults.
    """
    if task not in TASKS:
        raise InputError(f"--task: {task!r} is not a task{did_you_mean(task, TASKS)}; `kasatune list tasks` shows them")
    info = TASKS[task]
    rows = _rows(task, data, validation) | _documents(task, corpus)
    method = method or ("akasa" if info.kind == "generation" or info.rows == "pairs" else DEFAULT_METHOD)
    protects = method == "akasa"
    given: dict[str, dict[str, Any]] = {
        "model": {"name": model},
        "task": {"name": task, **rows},
        "method": {"name": method, "r": 8, "target_modules": "all-linear" if protects else "default"},
        "training": {"epochs": 1, "learning_rate": _LEARNING_RATE_OF_PREFERENCE}
        if info.compares_with_reference
        else {"epochs": 3, "learning_rate": _LEARNING_RATE_OF_AKASA if protects else _LEARNING_RATE},
    }
    if info.kind == "generation":
        given["generation"] = {"max_new_tokens": info.decoding.get("max_new_tokens", 64)}
    sections = {**given, **({"output": output} if output else {})}
    recipe = Recipe.model_validate(sections, source="the recipe", check_inputs=True)
    lines = [
        f"# {info.title}: {method} on {model}",
        "# kasatune plan FILE shows what it costs, kasatune train FILE runs it, kasatune show FILE lists every key.",
    ]
    for section, values in given.items():
        lines += [f"{section}:", *(f"  {inline_yaml(key, value)}" for key, value in values.items())]
        lines += [f"  # {_comment(recipe, section, key)}" for key in _SHOWN[section] if key not in values]
    text = "\n".join([*lines, inline_yaml("output", recipe.output), ""])
    Recipe.model_validate(parse_yaml(text), source="the recipe", check_inputs=True)
    return text


def write_new(path: Path, text: str) -> None:
    """Write `text` to a file that does not exist yet.

    Raises:
        OutputError: the file exists, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as fault:
        raise OutputError(f"{path} exists and is not overwritten; give another name with --out") from fault
    except OSError as fault:
        raise OutputError(f"{path} cannot be written ({fault.strerror or fault}); give another name") from fault


def needs_data(task: str) -> bool:
    """Whether a task reads your own files, which a recipe must name."""
    return task in TASKS and TASKS[task].reads_own_files


def needs_corpus(task: str) -> bool:
    """Whether a task retrieves passages from documents, which a recipe must name."""
    return task in TASKS and "corpus" in TASKS[task].keys


def _documents(task: str, corpus: str | None) -> dict[str, str]:
    if needs_corpus(task):
        if corpus is None:
            raise InputError(
                f"--corpus: missing; {task} answers from documents: give a file, a folder or package:MODULE"
            )
        return {"corpus": corpus}
    if corpus is not None:
        raise InputError(f"--corpus: {corpus!r} received; {task} reads no documents; leave it out")
    return {}


def _rows(task: str, data: str | None, validation: str | None) -> dict[str, Any]:
    info = TASKS[task]
    if not info.reads_own_files:
        if validation is not None:
            raise InputError(
                f"--validation: {validation!r} received; {task} brings its own validation rows; leave it out"
            )
        if data is not None and "data" not in info.keys:
            raise InputError(f"--data: {data!r} received; {task} makes its own rows; leave it out")
        return {} if data is None else {"data": data}
    if data is None:
        raise InputError(f"--data: missing; {task} reads your own files: give the training file")
    rows: dict[str, Any] = {"train": data, "validation": HELD_OUT if validation is None else validation}
    if data.startswith(HUB):
        return rows
    names = column_names(Path(data))
    if info.rows == "chat" and info.prompter is None:
        columns_of_chats(names, data)
    elif info.rows == "pairs":
        columns_of_pairs(names, data)
    return rows | _columns([key for key in info.keys if key in _USUAL_COLUMNS], names, data)


def _columns(keys: Sequence[str], names: Sequence[str], path: str) -> dict[str, str]:
    """The column for each key, by its usual names; the last key without one takes the only column that is left."""
    by_name = {name.lower(): name for name in reversed(names)}
    columns: dict[str, str] = {}
    for key in keys:
        usual = [by_name[name] for name in _USUAL_COLUMNS[key] if name in by_name]
        free = [name for name in usual if name not in columns.values()]
        if free:
            columns[key] = free[0]
    unknown, left = [key for key in keys if key not in columns], [n for n in names if n not in columns.values()]
    if len(unknown) == len(left) == 1:
        columns[unknown[0]] = left[0]
    elif unknown:
        raise InputError(
            f"{path}: no column looks like the {unknown[0]} (columns: {', '.join(names)}); rename one to "
            f"{unknown[0]!r}, or write the recipe by hand, see `kasatune train --help`"
        )
    return columns


def _comment(recipe: Recipe, section: str, key: str) -> str:
    field = SECTIONS[section].model_fields[key]
    value = inline_yaml(key, getattr(getattr(recipe, section), key))
    first = re.split(r"[.:;](?: |$)", " ".join(str(field.description or "").split()))[0]
    return f"{value:<28}  {first}"

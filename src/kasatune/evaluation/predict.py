"""Predict labels, numbers or text for new inputs, with the model of a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kasatune.data.chat_template import prompt_of_chat
from kasatune.data.prompt_completion import prompt_tokens
from kasatune.data.tasks.mixture_parts import infos_by_part, part_tasks, settings_by_part
from kasatune.errors import InputError
from kasatune.evaluation.scoring import answers
from kasatune.evaluation.task_model import TaskModel, deterministic
from kasatune.io.library_noise import quiet
from kasatune.recipes.messages import did_you_mean
from kasatune.recipes.schema import Recipe
from kasatune.runs.directory import read_recipe
from kasatune.runs.metrics import read_metrics

Text = str | Sequence[str]

_SURROGATE = re.compile("[\ud800-\udfff]")


def predict(
    run_dir: Path, texts: Sequence[Text], *, base: str | None = None, part: str | None = None
) -> list[dict[str, Any]]:
    """The predictions of a run's model for new texts.

    Args:
        run_dir: directory of a run that has finished or was interrupted.
        texts: one or more, without the task's prompt; for a task on pairs, two texts each, or one with a tab between
            them.
        base: where the base model is now, if not where the recipe says.
        part: of a run on a mixture, the part whose prompt and decoding are used; None if all parts agree on them.

    Returns:
        For each text `input` as given and `prediction`: {"label": name, "scores": {name: probability}}, a number, or
        {"text": generated text}; of a task with retrieval `passages`, each with `document`, `text` and `score`; and
        `truncated`: true if the text is longer than the model was trained for, so that
        its end was not read, or its beginning if text is generated.

    Raises:
        InputError: the directory, its files or the base model is missing or damaged, or a text does not fit the task.
    """
    run_dir = Path(run_dir)
    recipe, metrics = read_recipe(run_dir), read_metrics(run_dir)
    chosen = choose_part(recipe, part)
    fields = [_fields(text, number, metrics["text_fields"]) for number, text in enumerate(texts, start=1)]
    if not fields:
        return []
    names = tuple(metrics["label_names"]) if metrics.get("label_names") else None
    with quiet(), deterministic():
        task_model = TaskModel.for_saved_run(recipe, names, run_dir, base=base)
        if task_model.kind == "generation":
            return _generate(task_model, [text for text, *_ in fields], chosen)
        second = [pair[1] for pair in fields] if metrics["text_fields"] == 2 else None
        examples = task_model.tokenize([text for text, *_ in fields], second, None)
        predictions, scores = answers(task_model.logits(examples), task_model.kind)
    items = []
    for index, text in enumerate(texts):
        prediction: Any = predictions[index]
        if names is not None:
            prediction = {"label": names[prediction], "scores": dict(zip(names, scores[index], strict=True))}
        item: dict[str, Any] = {"input": text if isinstance(text, str) else list(text), "prediction": prediction}
        items.append(item | ({"truncated": True} if index in examples.truncated else {}))
    return items


def choose_part(recipe: Recipe, part: str | None) -> str:
    """The part of a mixture that new texts belong to; of another task, its name.

    Args:
        recipe: recipe of a run.
        part: the part that was asked for; None to take the first one if all parts are prompted and decoded alike.

    Raises:
        InputError: there is no such part, the task is no mixture, or the parts differ and none was named.
    """
    parts, infos = settings_by_part(recipe.task), infos_by_part(recipe.task)
    mixed = bool(part_tasks(recipe.task))
    if part is not None and (not mixed or part not in parts):
        known = f"its parts are {', '.join(parts)}" if mixed else f"the run was trained on {recipe.task.name} alone"
        raise InputError(
            f"--part: {part!r} received; {known}{did_you_mean(part, parts) if mixed else '; leave it out'}"
        )
    if part is not None or not mixed:
        return part or recipe.task.name
    forms = {(info.rows, info.prompt, str(parts[name].generation)) for name, info in infos.items()}
    if len(forms) > 1:
        raise InputError(
            f"--part: missing; the run was trained on a mixture whose parts are prompted or decoded differently; name"
            f" the one that the text belongs to: {', '.join(parts)}"
        )
    return next(iter(parts))


def _generate(task_model: TaskModel, texts: Sequence[str], part: str) -> list[dict[str, Any]]:
    info, tokenizer = task_model.part_infos[part], task_model.base.tokenizer
    settings = task_model.part_generation.get(part)
    retrieved = None if task_model.prompter is None else [task_model.prompter(text) for text in texts]
    prompts: Any = [info.render(text) for text in texts] if retrieved is None else [item.text for item in retrieved]
    if info.uses_chat_template:
        prompts = [prompt_of_chat(tokenizer, [("user", prompt)]) for prompt in prompts]
    max_length = task_model.recipe.task.max_length
    truncated = [len(row) > max_length for row in prompt_tokens(tokenizer, prompts)]
    passages = [[]] * len(texts) if retrieved is None else [[p._asdict() for p in item.passages] for item in retrieved]
    return [
        {"input": text, "prediction": {"text": generated}}
        | ({} if retrieved is None else {"passages": own_passages})
        | ({"truncated": True} if is_truncated else {})
        for text, generated, own_passages, is_truncated in zip(
            texts, task_model.generate(prompts, settings), passages, truncated, strict=True
        )
    ]


def _fields(text: Text, number: int, expected: int) -> tuple[str, ...]:
    """The text, or the pair of texts, that the task needs.

    Raises:
        InputError: another number of texts, an empty text, or a value that is not text.
    """
    given = text.split("\t") if isinstance(text, str) and expected == 2 else text
    items: Sequence[object] = given if isinstance(given, (list, tuple)) else [given]
    parts = tuple(item for item in items if isinstance(item, str))
    if len(parts) < len(items):
        raise InputError(f"text {number}: {text!r} is not text")
    if len(parts) != expected:
        need = "two texts, with a tab between them" if expected == 2 else "one text"
        raise InputError(f"text {number}: the task needs {need}, {len(parts)} were given: {parts!r}")
    if not all(part.strip() for part in parts):
        raise InputError(f"text {number} is empty: leave it out")
    if any(_SURROGATE.search(part) for part in parts):
        raise InputError(f"text {number} holds half of a surrogate pair, which is not text: save it as UTF-8")
    return parts

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kasatune.data.chat_template import prompt_of_chat
from kasatune.data.prompt_completion import prompt_tokens
from kasatune.data.tasks.prompts import render
from kasatune.errors import InputError
from kasatune.evaluation.scoring import answers
from kasatune.evaluation.task_model import TaskModel, deterministic
from kasatune.io.library_noise import quiet
from kasatune.runs.directory import read_metrics, read_recipe

Text = str | Sequence[str]


def predict(run_dir: Path, texts: Sequence[Text]) -> list[dict[str, Any]]:
    """What a run's model makes of new texts.

    Args:
        run_dir: of a run that was finished, or interrupted.
        texts: one or more, without the task's prompt around them; where the task is about pairs, two texts each, or
            one with a tab between them.

    Returns:
        For each text `input` as given and `prediction`: {"label": name, "scores": {name: probability}}, a number, or
        {"text": what is written for it}; and `truncated`: true where the text is longer than the model was trained for,
        so that its end was not read, or its beginning where text is written.

    Raises:
        InputError: the directory, its files or the base model is not to be had, or a text is not what the task needs.
    """
    run_dir = Path(run_dir)
    recipe, metrics = read_recipe(run_dir), read_metrics(run_dir)
    fields = [_fields(text, number, metrics["text_fields"]) for number, text in enumerate(texts, start=1)]
    if not fields:
        return []
    names = tuple(metrics["label_names"]) if metrics.get("label_names") else None
    with quiet(), deterministic():
        prepared = TaskModel.for_saved_run(recipe, metrics["kind"], names, run_dir)
        if prepared.kind == "generation":
            return _written(prepared, [pair[0] for pair in fields])
        second = [pair[1] for pair in fields] if metrics["text_fields"] == 2 else None
        examples = prepared.tokenize([pair[0] for pair in fields], second, None)
        predictions, scores = answers(prepared.logits(examples), prepared.kind)
    found = []
    for index, text in enumerate(texts):
        prediction: Any = predictions[index]
        if names is not None:
            prediction = {"label": names[prediction], "scores": dict(zip(names, scores[index], strict=True))}
        item: dict[str, Any] = {"input": text if isinstance(text, str) else list(text), "prediction": prediction}
        found.append(item | ({"truncated": True} if index in examples.truncated else {}))
    return found


def _written(prepared: TaskModel, texts: Sequence[str]) -> list[dict[str, Any]]:
    prompts: Any = [render(prepared.recipe.task.name, text) for text in texts]
    if prepared.recipe.task.name == "instruction":
        prompts = [prompt_of_chat(prepared.base.tokenizer, [("user", text)]) for text in texts]
    limit = prepared.recipe.task.max_length
    cut = [len(row) > limit for row in prompt_tokens(prepared.base.tokenizer, prompts)]
    return [
        {"input": text, "prediction": {"text": written}} | ({"truncated": True} if long else {})
        for text, written, long in zip(texts, prepared.generate(prompts), cut, strict=True)
    ]


def _fields(text: Text, number: int, wanted: int) -> tuple[str, ...]:
    """The text, or the pair of texts, that the task needs.

    Raises:
        InputError: another number of texts, an empty one, or no text at all.
    """
    given = text.split("\t") if isinstance(text, str) and wanted == 2 else text
    items: Sequence[object] = given if isinstance(given, (list, tuple)) else [given]
    parts = tuple(item for item in items if isinstance(item, str))
    if len(parts) < len(items):
        raise InputError(f"text {number}: {text!r} is not text")
    if len(parts) != wanted:
        need = "two texts, with a tab between them" if wanted == 2 else "one text"
        raise InputError(f"text {number}: the task needs {need}, {len(parts)} were given: {parts!r}")
    if not all(part.strip() for part in parts):
        raise InputError(f"text {number} is empty: leave it out")
    return parts

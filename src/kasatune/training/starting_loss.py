"""The losses of a language model before the first step: the untouched base, and the model with the method attached.

A method that changes the base when it is attached, as KaSA does by dropping a component of each weight, may start far
from the base; a run measures this and warns of it.
"""

from __future__ import annotations

import json
import time
from typing import Any

from kasatune.data.collate import CausalCollator
from kasatune.data.readers.docstrings import standard_library_docstrings
from kasatune.data.tokenize import Examples
from kasatune.data.tokenize_pairs import chosen_rows
from kasatune.distributed.fsdp import deepspeed_requested, sharding_requested
from kasatune.distributed.process_group import is_main
from kasatune.errors import DivergedError
from kasatune.evaluation.causal_loss import text_loss
from kasatune.evaluation.mixture import first_of_each_part
from kasatune.evaluation.task_model import TaskModel
from kasatune.io.atomic import write_json
from kasatune.io.run_layout import START
from kasatune.methods.info import MethodInfo
from kasatune.training.run import SPLIT, Run

ROWS = 64
_TEXTS, _TOKENS = 16, 64  # of unrelated text, and the tokens that are read of each
RISE = 0.1
"""Nats by which a loss may rise before the first step without a warning."""

_LEAST_WORDS = 60


def record_start(run: Run, *, resume: bool) -> None:
    """Measure the losses before the first step, once in a run, for metrics.json."""
    if sharding_requested() or deepspeed_requested() or not is_main():
        return
    path = run.work / START
    if resume and path.is_file():
        run.details["start"] = json.loads(path.read_text(encoding="utf-8"))
        return
    begin = time.perf_counter()
    measured = measure_start(run.task_model, run.examples[SPLIT])
    if measured is None:
        return
    run.details["start"] = measured
    run.seconds["start"] = time.perf_counter() - begin
    write_json(path, measured)
    for message in messages(measured, run.task_model.method.info):
        run.display.message(message)


def measure_start(task_model: TaskModel, validation: Examples) -> dict[str, Any] | None:
    """The losses before the first step; None for tasks that do not generate text, and if a loss is not finite.

    Args:
        task_model: with the method attached and prepared; its model is left as it is.
        validation: tokenized rows of the task, of which the first 64 are read, in equal numbers from each part of a
            mixture.

    Returns:
        `rows`, `unrelated_texts`; `base` and `start`, each with `loss` (of an answer token of the task, in nats; the
        chosen answers of pairs) and `unrelated_loss` (of a token of Python documentation strings); `base` is None if
        the method cannot be switched off.
    """
    if task_model.kind != "generation":
        return None
    rows = first_of_each_part(validation, ROWS)
    if task_model.info.rows == "pairs":
        rows = chosen_rows(rows)
    unrelated = _unrelated(task_model)
    info = task_model.method.info
    differs = bool(info.start) or bool(task_model.recipe.method.drop)
    try:
        start = base = _losses(task_model, rows, unrelated)
        if differs and not info.disable:
            with task_model.method.disabled(task_model.model):
                base = _losses(task_model, rows, unrelated)
    except DivergedError:  # training stops at its first step, with the reason
        return None
    known = None if differs and info.disable else base
    return {"rows": len(rows), "unrelated_texts": len(unrelated), "base": known, "start": start}


def messages(measured: dict[str, Any], method: MethodInfo) -> list[str]:
    """One line with the losses, and a warning if one of them rose by more than `RISE`."""
    base, start = measured["base"], measured["start"]
    shown = [
        f"{what} {start[key]:.3f}" + ("" if base is None else f" (base {base[key]:.3f})")
        for key, what in (("loss", "loss"), ("unrelated_loss", "on unrelated text"))
    ]
    lines = [f"before the first step: {', '.join(shown)}"]
    rises = {} if base is None else {key: start[key] - base[key] for key in start}
    if rises and max(rises.values()) > RISE:
        lines.append(
            f"warning: attaching {method.name} changed the loss by {rises['loss']:+.2f} nats on the task and by "
            f"{rises['unrelated_loss']:+.2f} on unrelated text before the first step{_remedy(method)}"
        )
    return lines


def _remedy(method: MethodInfo) -> str:
    if not method.drops_triplets:
        return f": {method.start}" if method.start else ""
    return (
        ": what it dropped is used by this model's activations. Use method.name: akasa, method.truncate_by: activation "
        "or method.drop: 0; `kasatune inspect MODEL --truncation` shows the losses by kind of layer"
    )


def _unrelated(task_model: TaskModel) -> Examples:
    """The beginnings of documentation strings of Python's standard library."""
    texts = standard_library_docstrings(_LEAST_WORDS, number=_TEXTS)
    length = min(_TOKENS, task_model.recipe.task.max_length)
    rows: Any = task_model.base.tokenizer(texts, truncation=True, max_length=length)["input_ids"]
    return Examples(
        [{"input_ids": row, "attention_mask": [1] * len(row), "labels": row} for row in rows if len(row) > 1],
        frozenset(),
    )


def _losses(task_model: TaskModel, rows: Examples, unrelated: Examples) -> dict[str, float]:
    training, collate = task_model.recipe.training, CausalCollator(task_model.base.tokenizer)
    loss, unrelated_loss = (
        text_loss(task_model.model, examples, collate, training.eval_batch_size, training.precision).mean
        for examples in (rows, unrelated)
    )
    return {"loss": loss, "unrelated_loss": unrelated_loss}

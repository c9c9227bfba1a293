"""The losses of a language model before the first step and at the end: on the task's rows and on unrelated text."""

from __future__ import annotations

from typing import Any

from kasatune.data.collate import CausalCollator
from kasatune.data.readers.docstrings import standard_library_docstrings
from kasatune.data.tokenize import Examples
from kasatune.data.tokenize_pairs import chosen_rows
from kasatune.errors import DivergedError
from kasatune.evaluation.causal_loss import text_loss
from kasatune.evaluation.mixture import first_of_each_part
from kasatune.evaluation.position_losses import PositionLosses
from kasatune.evaluation.task_model import TaskModel

ROWS = 64
_TEXTS, _TOKENS = 16, 64  # of unrelated text, and the tokens that are read of each
_LEAST_WORDS = 60


def measure_start(task_model: TaskModel, validation: Examples) -> dict[str, Any] | None:
    """The losses before the first step; None for tasks that do not generate text, and if a loss is not finite.

    Args:
        task_model: with the method attached and prepared; its model is left as it is.
        validation: tokenized rows of the task, of which the first 64 are read, in equal numbers from each part of a
            mixture.

    Returns:
        `rows`, `unrelated_texts`; `base` and `start`, each with `loss` (of an answer token of the task, in nats; the
        chosen answers of pairs), `unrelated_loss` (of a token of Python documentation strings) and `by_position` (see
        `PositionLosses.means`, on the task); `base` is None if the method cannot be switched off.
    """
    if task_model.kind != "generation":
        return None
    rows = _task_rows(task_model, validation)
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


def measure_end(task_model: TaskModel, validation: Examples) -> dict[str, Any] | None:
    """`loss`, `unrelated_loss` and `by_position` of a trained model, on the same rows and texts as `measure_start`.

    Args:
        task_model: the trained model.
        validation: as for `measure_start`.

    Returns:
        None for tasks that do not generate text, and if a loss is not finite.
    """
    if task_model.kind != "generation":
        return None
    try:
        return _losses(task_model, _task_rows(task_model, validation), _unrelated(task_model))
    except DivergedError:
        return None


def _task_rows(task_model: TaskModel, validation: Examples) -> Examples:
    rows = first_of_each_part(validation, ROWS)
    return chosen_rows(rows) if task_model.info.rows == "pairs" else rows


def _unrelated(task_model: TaskModel) -> Examples:
    """The beginnings of documentation strings of Python's standard library."""
    texts = standard_library_docstrings(_LEAST_WORDS, number=_TEXTS)
    length = min(_TOKENS, task_model.recipe.task.max_length)
    rows: Any = task_model.base.tokenizer(texts, truncation=True, max_length=length)["input_ids"]
    return Examples(
        [{"input_ids": row, "attention_mask": [1] * len(row), "labels": row} for row in rows if len(row) > 1],
        frozenset(),
    )


def _losses(task_model: TaskModel, rows: Examples, unrelated: Examples) -> dict[str, Any]:
    training, collate = task_model.recipe.training, CausalCollator(task_model.base.tokenizer)
    positions = PositionLosses()
    loss, unrelated_loss = (
        text_loss(task_model.model, examples, collate, training.eval_batch_size, training.precision, measured).mean
        for examples, measured in ((rows, positions), (unrelated, None))
    )
    return {"loss": loss, "unrelated_loss": unrelated_loss, "by_position": positions.means()}

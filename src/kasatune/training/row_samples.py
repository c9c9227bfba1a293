"""Rows of a scored split to read: those that a model got most wrong, and what the untouched base answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from kasatune.data.tasks.dataset import Rows
from kasatune.data.tasks.mixture_parts import in_turn
from kasatune.evaluation.scoring import Scores
from kasatune.evaluation.task_model import TaskModel

WORST = 20
ANSWERS = 5
_LONGEST_TEXT = 500


def worst_rows(scores: Scores, rows: Rows) -> list[dict[str, Any]]:
    """The rows with the least probability of the right label, or the largest error; only rows that are wrong.

    Args:
        scores: of a classification or regression.
        rows: the rows that were scored, in the same order.

    Returns:
        {"row", "texts"} of at most `WORST` rows, the worst first; rows count from 0, texts are cut.
    """
    if scores.logits is None or len(rows) != len(scores.labels):
        return []
    if scores.logits.shape[1] == 1:
        error = np.abs(np.asarray(scores.predictions, dtype=float) - np.asarray(scores.labels, dtype=float))
    else:
        right = np.asarray([row[label] for row, label in zip(scores.scores, scores.labels, strict=True)])
        error = np.where(np.asarray(scores.predictions) == np.asarray(scores.labels), 0.0, 1.0 - right)
    order = [int(index) for index in np.argsort(-error, kind="stable")[:WORST] if error[index] > 0]
    return [
        {"row": index, "texts": [text[:_LONGEST_TEXT] for text in rows.pick([index]).texts()[0]]} for index in order
    ]


def base_answers(task_model: TaskModel, scores: Scores) -> list[str]:
    """What the untouched base answers to the first prompts, of a mixture to one of each part in turn.

    There are none if the method cannot be switched off.

    Args:
        task_model: a trained model; left as it is.
        scores: its scores, with the prompts that it answered.
    """
    if not scores.inputs or task_model.method.info.disable:
        return []
    parts = scores.parts or [""] * len(scores.inputs)
    chats = scores.messages or [None] * len(scores.inputs)
    answers: list[str] = []
    with task_model.method.disabled(task_model.model):
        for index in in_turn(parts)[:ANSWERS]:
            chat, settings = chats[index], task_model.part_generation.get(parts[index])
            if chat is None:
                answers += task_model.generate([scores.inputs[index]], settings)
            else:
                answers += task_model.answer([tuple(chat)], settings)
    return answers

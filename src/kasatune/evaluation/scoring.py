"""A model's answers to tokenized rows, and the scores of these answers: the same code in training and afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from kasatune.data.tokenize import Examples
from kasatune.metrics import classification_scores, regression_scores

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Scores:
    """What a model makes of a split.

    Attributes:
        metrics: scores by name, `loss` (the task's alone) among them.
        labels: the right answers; of text, the list of references of each input.
        predictions: the model's: label numbers, numbers, or texts.
        scores: probabilities of every label for each row, or the numbers again; empty for text.
        inputs: what text was written for; None where the answers are to the rows of the split.
        logits: what they were made of, float32 (rows, labels); None for text.
    """

    metrics: dict[str, float]
    labels: list[Any]
    predictions: list[Any]
    scores: list[Any]
    inputs: list[str] | None = None
    logits: np.ndarray | None = None


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The mixed precision that a recipe asks for: "float32" is none."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST[precision])


def logits(
    model: nn.Module,
    examples: Examples,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    batch_size: int,
    precision: str = "float32",
    between: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """The logits of every row, float32 (rows, labels), in the order of the rows.

    Rows of like length share a batch, so that little padding is computed; which rows share one depends on the lengths
    and on `batch_size` alone.

    Args:
        model: put into evaluation mode, and back afterwards.
        examples: tokenized rows; at least one.
        collate: makes a batch of rows.
        batch_size: rows in a batch.
        precision: "float32", "bfloat16" or "float16" (autocast).
        between: called after each batch.
    """
    device = next(model.parameters()).device
    shared = batches(examples, batch_size)
    was_training = model.training
    model.eval()
    parts = []
    try:
        with torch.no_grad(), autocast(device, precision):
            for indices in shared:
                rows = [examples[index] for index in indices]
                batch = collate([{key: value for key, value in row.items() if key != "labels"} for row in rows])
                parts.append(model(**{key: value.to(device) for key, value in batch.items()}).logits.float().cpu())
                between()
    finally:
        model.train(was_training)
    ordered = torch.cat(parts).numpy()
    result = np.empty_like(ordered)
    result[[index for indices in shared for index in indices]] = ordered
    return result


def batches(examples: Examples, batch_size: int) -> list[list[int]]:
    """Which rows share a batch when they are scored: the longest rows first, equally long ones in their order."""
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index]["input_ids"]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def score(values: np.ndarray, labels: Sequence[int] | Sequence[float], kind: str, names: Sequence[str]) -> Scores:
    """The scores `names` and the task's loss of logits (rows, labels).

    Args:
        values: as `logits` gives them.
        labels: the right answers, label numbers or numbers.
        kind: "classification" or "regression".
        names: of the task's metrics.

    Raises:
        DivergedError: a logit is not finite.
    """
    predictions, shown = answers(values, kind)
    wide = torch.from_numpy(values).double()
    if kind == "regression":
        loss = functional.mse_loss(wide.squeeze(-1), torch.tensor(labels, dtype=torch.float64))
        metrics = regression_scores(names, predictions, labels)
    else:
        loss = functional.cross_entropy(wide, torch.tensor(labels))
        metrics = classification_scores(names, values, labels)
    return Scores({**metrics, "loss": float(loss)}, list(labels), predictions, shown, logits=values)


def answers(values: np.ndarray, kind: str) -> tuple[list[Any], list[Any]]:
    """Predictions and shown scores of logits: label numbers and probabilities, or numbers twice."""
    if kind == "regression":
        numbers = values[:, 0].tolist()
        return numbers, numbers
    return values.argmax(-1).tolist(), torch.from_numpy(values).softmax(-1).tolist()


def predictions(split: str, scores: Scores) -> dict[str, Any]:
    """The content of predictions.json."""
    asked = {} if scores.inputs is None else {"inputs": scores.inputs}
    return {
        "split": split,
        **asked,
        "labels": scores.labels,
        "predictions": scores.predictions,
        "scores": scores.scores,
    }

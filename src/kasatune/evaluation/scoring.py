"""Score labelled rows: logits in evaluation batches, predictions, metrics and loss; the same in and after training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kasatune.data.tokenize import Examples
from kasatune.evaluation.batches import batches_by_length, evaluation_mode, to_device, token_counts
from kasatune.metrics import classification_scores, regression_scores


@dataclass(frozen=True)
class Scores:
    """Scores and predictions of a model on a split.

    Attributes:
        metrics: scores by name, including `loss` (of the task alone, without penalty).
        labels: the right answers; for text, the list of references of each input.
        predictions: of the model: label numbers, numbers, or texts.
        scores: probabilities of every label for each row, or the numbers again; for text, details of the scorer.
        inputs: the prompts of generated text; None if the predictions are those of the rows of the split.
        messages: the messages before each answer, as (role, text), where `inputs` are conversations, None for one that
            is not; None without conversations.
        logits: float32 (rows, labels), from which the predictions come; None for text.
        losses: of text, {"sum", "tokens", "prompt"}: for each row the sum over its labelled tokens, their number, and
            the number of its prompt among the distinct ones; "part", the part of a mixture; None for labels.
        parts: the part of a mixture that each prediction belongs to; empty for other tasks.
        part_tasks: the task of each part.
    """

    metrics: dict[str, float]
    labels: list[Any]
    predictions: list[Any]
    scores: list[Any]
    inputs: list[str] | None = None
    logits: np.ndarray | None = None
    messages: Sequence[Sequence[tuple[str, str]] | None] | None = None
    losses: Mapping[str, list[Any]] | None = None
    parts: Sequence[str] = ()
    part_tasks: Mapping[str, str] = field(default_factory=dict)


def logits(
    model: nn.Module,
    examples: Examples,
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]],
    batch_size: int,
    precision: str = "float32",
    between: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """The logits of every row, float32 (rows, labels), in the order of the rows.

    Args:
        model: its training mode is restored afterwards.
        examples: tokenized rows; at least one.
        collate: makes a batch of rows.
        batch_size: rows in a batch; see `batches_by_length`.
        precision: "float32", "bfloat16" or "float16" (autocast).
        between: called after each batch.
    """
    batches = batches_by_length(token_counts(examples.rows), batch_size)
    parts = []
    with evaluation_mode(model, precision) as device:
        for indices in batches:
            rows = [examples[index] for index in indices]
            batch = collate([{key: value for key, value in row.items() if key != "labels"} for row in rows])
            parts.append(model(**to_device(batch, device)).logits.float().cpu())
            between()
    in_batch_order = torch.cat(parts).numpy()
    result = np.empty_like(in_batch_order)
    result[[index for indices in batches for index in indices]] = in_batch_order
    return result


def score(values: np.ndarray, labels: Sequence[int] | Sequence[float], kind: str, names: Sequence[str]) -> Scores:
    """The scores `names` and the task's loss of logits (rows, labels).

    Args:
        values: result of `logits`.
        labels: the right answers, label numbers or numbers.
        kind: "classification" or "regression".
        names: names of the task's metrics.

    Raises:
        DivergedError: a logit is not finite.
    """
    predicted, shown = answers(values, kind)
    wide = torch.from_numpy(values).double()
    if kind == "regression":
        loss = functional.mse_loss(wide.squeeze(-1), torch.tensor(labels, dtype=torch.float64))
        metrics = regression_scores(names, predicted, labels)
    else:
        loss = functional.cross_entropy(wide, torch.tensor(labels))
        metrics = classification_scores(names, values, labels)
    return Scores({**metrics, "loss": float(loss)}, list(labels), predicted, shown, logits=values)


def answers(values: np.ndarray, kind: str) -> tuple[list[Any], list[Any]]:
    """Predictions and scores to show, from logits: label numbers and probabilities, or the numbers twice."""
    if kind == "regression":
        numbers = values[:, 0].tolist()
        return numbers, numbers
    return values.argmax(-1).tolist(), torch.from_numpy(values).softmax(-1).tolist()


def predictions(split: str, scores: Scores) -> dict[str, Any]:
    """The content of predictions.json."""
    inputs: dict[str, Any] = {} if scores.inputs is None else {"inputs": scores.inputs}
    if scores.messages is not None:
        inputs["messages"] = [
            None if chat is None else [{"role": role, "content": text} for role, text in chat]
            for chat in scores.messages
        ]
    if scores.parts:
        inputs |= {"parts": list(scores.parts), "tasks": dict(scores.part_tasks)}
    losses = {} if scores.losses is None else {"losses": dict(scores.losses)}
    return {
        "split": split,
        **inputs,
        "labels": scores.labels,
        "predictions": scores.predictions,
        "scores": scores.scores,
        **losses,
    }

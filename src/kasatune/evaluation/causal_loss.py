"""The loss and perplexity of a causal language model on tokenized rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kasatune.data.prompt_completion import IGNORED
from kasatune.data.tokenize import Examples
from kasatune.errors import DivergedError
from kasatune.evaluation.batches import batches_by_length, evaluation_mode, to_device, token_counts
from kasatune.wording import counted


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """sum_t -log softmax(logits_t)[label_(t+1)] over the labelled tokens t + 1 of each row, float32 (rows,).

    Args:
        logits: (rows, tokens, vocabulary).
        labels: (rows, tokens); tokens with the label `IGNORED` do not count.
    """
    # Row by row: a float32 copy of the logits of a complete batch may be larger than the model.
    losses = [
        functional.cross_entropy(row[:-1].float(), label[1:], ignore_index=IGNORED, reduction="sum")
        for row, label in zip(logits, labels, strict=True)
    ]
    return torch.stack(losses)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of `row_losses` over the rows, a float32 scalar."""
    return row_losses(logits, labels).sum()


def learnt_tokens(labels: Tensor) -> int:
    """The number of labelled tokens of a batch; the first token of a row is not predicted and does not count."""
    return int((labels[:, 1:] != IGNORED).sum())


@dataclass(frozen=True)
class TextLoss:
    """The loss of a causal language model on tokenized rows.

    Attributes:
        mean: over the labelled tokens of all rows, each token with the same weight.
        sums: sum over the labelled tokens of each row, in the order of the rows.
        tokens: number of labelled tokens of each row.
    """

    mean: float
    sums: list[float]
    tokens: list[int]


def text_loss(
    model: nn.Module,
    examples: Examples,
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]],
    batch_size: int,
    precision: str = "float32",
) -> TextLoss:
    """The loss on the labelled tokens of all rows.

    Args:
        model: its training mode is restored afterwards.
        examples: with `labels`; at least one.
        collate: makes a batch of rows.
        batch_size: rows in a batch; see `batches_by_length`.
        precision: "float32", "bfloat16" or "float16" (autocast).

    Raises:
        DivergedError: the loss is not finite.
    """
    total, count = 0.0, 0
    sums, tokens = [0.0] * len(examples), [0] * len(examples)
    with evaluation_mode(model, precision) as device:
        for indices in batches_by_length(token_counts(examples.rows), batch_size):
            batch = to_device(collate([examples[index] for index in indices]), device)
            labels = batch.pop("labels")
            losses = row_losses(model(**batch).logits, labels)
            total += float(losses.sum())
            count += learnt_tokens(labels)
            for index, loss, label in zip(indices, losses.tolist(), labels, strict=True):
                sums[index], tokens[index] = loss, learnt_tokens(label[None])
    if not math.isfinite(total):
        raise DivergedError(f"the loss of {counted(len(examples), 'row')} is {total}; a lower learning rate may help")
    return TextLoss(total / count, sums, tokens)


def text_metrics(loss: float) -> dict[str, float]:
    """The loss, and perplexity = exp(loss), infinite if that is too large for a float."""
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}

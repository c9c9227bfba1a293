"""The loss of a causal language model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kasatune.data.prompt_completion import IGNORED
from kasatune.data.tokenize import Examples
from kasatune.errors import DivergedError
from kasatune.evaluation.scoring import autocast


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """sum_t -log softmax(logits_t)[label_(t+1)] over the learnt tokens t + 1, in float32.

    Args:
        logits: (rows, tokens, vocabulary).
        labels: (rows, tokens); `IGNORED` is not learnt.
    """
    # Row by row: a float32 copy of the logits of a whole batch may be larger than the model.
    losses = [
        functional.cross_entropy(row[:-1].float(), label[1:], ignore_index=IGNORED, reduction="sum")
        for row, label in zip(logits, labels, strict=True)
    ]
    return torch.stack(losses).sum()


def learnt_tokens(labels: Tensor) -> int:
    """How many tokens of a batch are predicted and learnt; the first of a row is not predicted."""
    return int((labels[:, 1:] != IGNORED).sum())


def text_loss(
    model: nn.Module,
    examples: Examples,
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
    batch_size: int,
    precision: str = "float32",
) -> float:
    """The mean loss of a learnt token over all rows; each token counts the same.

    Rows of like length share a batch.

    Args:
        model: put into evaluation mode, and back afterwards.
        examples: with `labels`; at least one.
        collate: makes a batch of rows.
        batch_size: rows in a batch.
        precision: "float32", "bfloat16" or "float16" (autocast).

    Raises:
        DivergedError: the loss is not finite.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index]["input_ids"]))
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        with torch.no_grad(), autocast(device, precision):
            for start in range(0, len(order), batch_size):
                batch = collate([examples[index] for index in order[start : start + batch_size]])
                batch = {name: value.to(device) for name, value in batch.items()}
                labels = batch.pop("labels")
                total += float(token_losses(model(**batch).logits, labels))
                count += learnt_tokens(labels)
    finally:
        model.train(was_training)
    if not math.isfinite(total):
        raise DivergedError(f"the loss of {len(examples)} rows is {total}; a lower learning rate may help")
    return total / count


def text_metrics(loss: float) -> dict[str, float]:
    """Perplexity = exp(loss), infinite where that is too large for a float, beside the loss."""
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}

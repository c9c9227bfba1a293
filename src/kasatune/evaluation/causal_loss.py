"""The loss and perplexity of a causal language model on tokenized rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from kasatune.data.prompt_completion import IGNORED
from kasatune.data.tokenize import Examples
from kasatune.errors import DivergedError
from kasatune.evaluation.batches import batches_by_length, evaluation_mode, to_device, token_counts
from kasatune.evaluation.logits_to_keep import kept_logits
from kasatune.evaluation.position_losses import PositionLosses
from kasatune.mixtures.forward_pass import labels_of_batch
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
    """The sum of `row_losses` over the rows, a float32 scalar.

    Args:
        logits: (rows, tokens, vocabulary), or (1, n, vocabulary) at the n positions of `predicting` alone.
        labels: (rows, tokens); tokens with the label `IGNORED` do not count.
    """
    if logits.shape[:2] == labels.shape:
        return row_losses(logits, labels).sum()
    targets = next_tokens(labels)
    return summed_cross_entropy(logits[0], targets[targets != IGNORED])


def kept_row_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """sum_t -log softmax(logits_t)[target_t] over the tokens t of each row that have a target, float32 (rows,).

    Args:
        logits: (n, vocabulary), at the n positions whose target is not `IGNORED`.
        targets: (rows, tokens), the token that each position predicts.
    """
    kept = targets != IGNORED
    counts = kept.sum(1).tolist()
    # Row by row: see `row_losses`.
    losses = [
        functional.cross_entropy(row.float(), target, reduction="sum")
        for row, target in zip(logits.split(counts), targets[kept].split(counts), strict=True)
    ]
    return torch.stack(losses)


def next_tokens(labels: Tensor) -> Tensor:
    """The label that each position predicts, (rows, tokens): that of the next token; `IGNORED` for the last one."""
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def predicting(labels: Tensor) -> Tensor:
    """Whether each position predicts a labelled token, bool (rows, tokens)."""
    return next_tokens(labels) != IGNORED


def learnt_tokens(labels: Tensor) -> int:
    """The number of labelled tokens of a batch; the first token of a row is not predicted and does not count."""
    return int((labels[:, 1:] != IGNORED).sum())


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """sum_i -log softmax(logits_i)[target_i], a float32 scalar, with less memory than PyTorch's cross-entropy.

    For float32 logits, the gradient softmax(logits) - onehot(target) is computed with the loss, in blocks of rows, and
    is the only tensor of that size which is kept for the backward pass.

    Args:
        logits: (n, vocabulary).
        targets: (n,), token numbers.
    """
    if logits.dtype != torch.float32 or not torch.is_grad_enabled():
        return functional.cross_entropy(logits.float(), targets, reduction="sum")
    return _SummedCrossEntropy.apply(logits, targets)


class _SummedCrossEntropy(torch.autograd.Function):
    _BLOCK_BYTES = 1 << 22  # a block stays in the cache of a processor between its passes

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        gradient = torch.empty_like(logits)
        losses = logits.new_empty(len(logits))
        rows = len(logits) if logits.is_cuda else max(1, _SummedCrossEntropy._BLOCK_BYTES // (4 * logits.shape[-1]))
        for start in range(0, len(logits), max(1, rows)):
            block = slice(start, start + rows)
            target = targets[block].unsqueeze(1)
            torch.sub(logits[block], logits[block].logsumexp(-1, keepdim=True), out=gradient[block])
            losses[block] = gradient[block].gather(1, target).squeeze(1).neg()
            gradient[block].exp_()
        gradient[torch.arange(len(targets), device=targets.device), targets] -= 1
        ctx.gradient = gradient
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("summed_cross_entropy: the backward pass ran twice; compute the loss again")
        return gradient.mul_(grad), None


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
    positions: PositionLosses | None = None,
) -> TextLoss:
    """The loss on the labelled tokens of all rows.

    Args:
        model: its training mode is restored afterwards.
        examples: with `labels`; at least one.
        collate: makes a batch of rows.
        batch_size: rows in a batch; see `batches_by_length`.
        precision: "float32", "bfloat16" or "float16" (autocast).
        positions: also receives the loss of every token, by its position.

    Raises:
        DivergedError: the loss is not finite.
    """
    total, count = 0.0, 0
    sums, tokens = [0.0] * len(examples), [0] * len(examples)
    with evaluation_mode(model, precision) as device:
        for indices in batches_by_length(token_counts(examples.rows), batch_size):
            batch = to_device(collate([examples[index] for index in indices]), device)
            labels = batch.pop("labels")
            targets = next_tokens(labels)
            with labels_of_batch(model, labels):
                logits = kept_logits(model, batch, targets != IGNORED)
            losses = kept_row_losses(logits, targets)
            if positions is not None:
                positions.add(logits, targets)
            del logits  # before those of the next batch are computed
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

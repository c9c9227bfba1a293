"""Log-likelihoods of continuations under a causal language model, computed as in lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from kasatune.data.collate import pad
from kasatune.data.prompt_completion import IGNORED
from kasatune.data.tokenize import tokenize
from kasatune.evaluation.batches import batches_by_length, evaluation_mode
from kasatune.evaluation.causal_loss import kept_row_losses
from kasatune.evaluation.known_tokens import require_known_tokens
from kasatune.evaluation.logits_to_keep import kept_logits
from kasatune.io.progress import progress_counter
from kasatune.mixtures.forward_pass import labels_of_batch
from kasatune.weights.usable_positions import usable_positions

Pair = tuple[str, str]
"""A context and a continuation."""


def log_likelihoods(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    batch_size: int,
    precision: str = "float32",
) -> list[float]:
    """sum_t log p(continuation_t | context, continuation_<t) of each pair, without an end-of-text token.

    Tokenized as in lm-eval: context and continuation together; tokens beyond the length of the tokenized context belong
    to the continuation, and so do blanks at the end of the context. A row that is longer than the model's positions
    loses its beginning.

    Args:
        model: its training mode is restored afterwards.
        tokenizer: tokenizer of the model.
        pairs: (context, continuation), neither empty.
        batch_size: pairs in a batch; see `batches_by_length`.
        precision: "float32", "bfloat16" or "float16" (autocast).

    Raises:
        ModelError: the model has no embedding for a token.
    """
    rows = encode_pairs(tokenizer, pairs)
    require_known_tokens(model, tokenizer, (tokens for tokens, _ in rows))
    positions = usable_positions(model)
    result = [0.0] * len(rows)
    with evaluation_mode(model, precision) as device, progress_counter("ranking", len(rows)) as advance:
        for indices in batches_by_length([len(tokens) for tokens, _ in rows], batch_size):
            sums = _batch_sums(model, [rows[index] for index in indices], positions, device)
            for index, value in zip(indices, sums, strict=True):
                result[index] = value
                advance()
    return result


def encode_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> list[tuple[list[int], int]]:
    """The tokens of each pair, and how many tokens at the end belong to the continuation."""
    contexts = [context.rstrip() for context, _ in pairs]
    texts = [context + continuation for context, continuation in pairs]
    context_tokens, text_tokens = (tokenize(tokenizer, column)["input_ids"] for column in (contexts, texts))
    return [
        (list(tokens), max(1, len(tokens) - len(context)))
        for context, tokens in zip(context_tokens, text_tokens, strict=True)
    ]


def _batch_sums(
    model: Any, rows: Sequence[tuple[list[int], int]], positions: int | None, device: torch.device
) -> list[float]:
    # The last token is predicted but not read, so that a row may have one token more than the model has positions.
    cut = [(tokens[-(positions + 1) :] if positions else tokens, continuation) for tokens, continuation in rows]
    inputs = [tokens[:-1] for tokens, _ in cut]
    starts = [max(0, len(tokens) - 1 - continuation) for tokens, continuation in cut]
    rows_of_targets = [[IGNORED] * start + tokens[start + 1 :] for start, (tokens, _) in zip(starts, cut, strict=True)]
    ids = pad(inputs, 0).to(device)
    mask = pad([[1] * len(row) for row in inputs], 0).to(device)
    targets = pad(rows_of_targets, IGNORED).to(device)
    contexts = [len(tokens) - continuation for tokens, continuation in cut]
    learnt = [[IGNORED] * length + row[length:] for length, row in zip(contexts, inputs, strict=True)]
    with labels_of_batch(model, pad(learnt, IGNORED).to(device)):
        logits = kept_logits(model, {"input_ids": ids, "attention_mask": mask}, targets != IGNORED)
    return [-loss for loss in kept_row_losses(logits, targets).tolist()]

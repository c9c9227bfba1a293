"""Which of several continuations a causal language model holds the likeliest, as lm-eval asks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from kasatune.evaluation.scoring import autocast
from kasatune.io.progress import progress_counter

Pair = tuple[str, str]


def log_likelihoods(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    batch_size: int,
    precision: str = "float32",
) -> list[float]:
    """sum_t log p(continuation_t | context, continuation_<t) of each pair, without an end-of-text token.

    Tokens as lm-eval cuts them: context and continuation together, the continuation's are those beyond as many as the
    context alone has; blanks at the end of a context belong to the continuation. What is longer than the model's
    positions loses its beginning. Pairs of like length share a batch.

    Args:
        model: put into evaluation mode, and back afterwards.
        tokenizer: its own.
        pairs: (context, continuation), neither empty.
        batch_size: pairs at a time.
        precision: "float32", "bfloat16" or "float16" (autocast).
    """
    rows = encode_pairs(tokenizer, pairs)
    positions = getattr(model.config, "max_position_embeddings", None)
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index][0]))
    device = next(model.parameters()).device
    found = [0.0] * len(rows)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(device, precision), progress_counter("ranking", len(order)) as advance:
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                for index, value in zip(batch, _sums(model, [rows[one] for one in batch], positions), strict=True):
                    found[index] = value
                    advance()
    finally:
        model.train(was_training)
    return found


def encode_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> list[tuple[list[int], int]]:
    """The tokens of each pair, and how many of them, at the end, are the continuation's."""
    contexts = [context.rstrip() for context, _ in pairs]
    wholes = [context + continuation for context, continuation in pairs]
    before: Any = tokenizer(contexts, verbose=False)["input_ids"]
    both: Any = tokenizer(wholes, verbose=False)["input_ids"]
    return [(list(whole), max(1, len(whole) - len(context))) for context, whole in zip(before, both, strict=True)]


def _sums(model: Any, rows: Sequence[tuple[list[int], int]], positions: int | None) -> list[float]:
    # The last token is predicted and not read, so that a row may have one token more than the model has positions.
    cut = [(tokens[-(positions + 1) :] if positions else tokens, own) for tokens, own in rows]
    longest = max(len(tokens) for tokens, _ in cut) - 1
    device = next(model.parameters()).device
    read = [tokens[:-1] for tokens, _ in cut]
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in read], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in read], device=device)
    logits = model(input_ids=ids, attention_mask=mask).logits
    sums = []
    for place, (tokens, own) in enumerate(cut):
        end = len(tokens) - 1
        last = functional.log_softmax(logits[place, max(0, end - own) : end].float(), dim=-1)
        wanted = torch.tensor(tokens[-len(last) :], device=device)
        sums.append(float(last.gather(1, wanted[:, None]).sum()))
    return sums

"""Rows of a mixture of tasks: tokenized as those of each part's own task, and the loss of each part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kasatune.data.tasks.dataset import Rows
from kasatune.data.tasks.mixture_rows import MixtureRows
from kasatune.data.tokenize import Examples
from kasatune.evaluation.causal_loss import TextLoss, text_metrics


def encode_mixture(rows: MixtureRows, encode: Callable[[Rows], Examples]) -> Examples:
    """Tokenize the rows of each part with `encode`, and return them in the order of `rows`."""
    tokenized: list[dict[str, Any]] = [{} for _ in range(len(rows))]
    truncated: set[int] = set()
    for part, indices in rows.indices().items():
        examples = encode(rows.of_part(part))
        for place, index in enumerate(indices):
            tokenized[index] = examples[place]
        truncated |= {indices[place] for place in examples.truncated}
    return Examples(tokenized, frozenset(truncated), tuple(rows.parts))


def first_of_each_part(examples: Examples, number: int) -> Examples:
    """About `number` rows: the first ones, of a mixture the first ones of each part."""
    if not examples.parts:
        return Examples(examples.rows[:number], frozenset())
    names = list(dict.fromkeys(examples.parts))
    each = -(-number // len(names))
    indices = [index for name in names for index in [i for i, part in enumerate(examples.parts) if part == name][:each]]
    return Examples([examples[index] for index in indices], frozenset(), tuple(examples.parts[i] for i in indices))


def part_metrics(parts: Sequence[str], loss: TextLoss) -> dict[str, float]:
    """Loss and perplexity of each part over its labelled tokens, as "PART/loss"; {} without parts."""
    metrics: dict[str, float] = {}
    for name in dict.fromkeys(parts):
        own = [index for index, part in enumerate(parts) if part == name]
        tokens = sum(loss.tokens[index] for index in own)
        if tokens:
            mean = sum(loss.sums[index] for index in own) / tokens
            metrics |= {f"{name}/{score}": value for score, value in text_metrics(mean).items()}
    return metrics

"""Rows of a mixture of tasks: tokenized as those of each part's own task; loss and routing of each part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kasatune.data.tasks.dataset import Rows
from kasatune.data.tasks.mixture_rows import MixtureRows
from kasatune.data.tokenize import Examples
from kasatune.evaluation.causal_loss import TextLoss, text_loss, text_metrics

if TYPE_CHECKING:
    from kasatune.evaluation.task_model import TaskModel

_ROUTED_ROWS = 64
"""Rows of each part on which routers are recorded."""


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


def routing_by_part(task_model: TaskModel, examples: Examples) -> dict[str, dict[str, Any]]:
    """What the routers of a mixture of experts choose on the first rows of each part, by the name of the part.

    Returns:
        See `RoutingStatistics.routing`; {} for rows without parts, and for a method without routers.
    """
    training = task_model.recipe.training
    measured: dict[str, dict[str, Any]] = {}
    for part in dict.fromkeys(examples.parts):
        recorded = task_model.method.recorded_routing(task_model.model)
        if recorded is None:
            return {}
        own = [row for row, name in zip(examples.rows, examples.parts, strict=True) if name == part]
        rows = Examples(own[:_ROUTED_ROWS], frozenset())
        with recorded as statistics:
            text_loss(task_model.model, rows, task_model.collate, training.eval_batch_size, training.precision)
        measured[part] = statistics
    return measured

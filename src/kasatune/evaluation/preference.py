"""Score pairs of a chosen and a rejected answer: DPO's implicit rewards, the rewards of a reward model, and their loss.

    implicit reward of an answer y to x:  beta (log p(y | x) - log p_ref(y | x))
    margin of a pair:                     reward of the chosen answer - reward of the rejected one
    loss of a pair:                       -log sigmoid(margin)

p_ref is the model as it was when training started, so that a model that is not trained has margin 0 and loss ln 2. The
loss of scores is this one for every variant of DPO, so that runs can be compared; training minimizes its own variant.

Source: Rafailov et al., arXiv 2305.18290, eq. 7 (DPO); Ouyang et al., arXiv 2203.02155, eq. 1 (reward models).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kasatune.data.prompt_completion import IGNORED
from kasatune.data.tokenize import Examples
from kasatune.data.tokenize_pairs import REFERENCE_CHOSEN, REFERENCE_REJECTED, pair_lengths
from kasatune.errors import DivergedError
from kasatune.evaluation.batches import batches_by_length, evaluation_mode, to_device
from kasatune.evaluation.scoring import Scores
from kasatune.mixtures.forward_pass import labels_of_batch

Collate = Callable[[list[dict[str, Any]]], Mapping[str, Tensor]]
"""Makes a batch of 2 n rows of n pairs, see `tokenize_pairs.PairCollator`."""


class PairValues(NamedTuple):
    """One number for each answer of each pair.

    Attributes:
        chosen: of the chosen answers.
        rejected: of the rejected answers.
    """

    chosen: list[float]
    rejected: list[float]


def log_probabilities(
    model: nn.Module,
    examples: Examples,
    collate: Collate,
    batch_size: int,
    precision: str = "float32",
    ld_alpha: float | None = None,
) -> PairValues:
    """The log-probability log p(y | x), summed over the tokens of each answer y, its end included.

    Args:
        model: a causal language model; its training mode is restored afterwards.
        examples: of `encode_pairs`.
        collate: makes a batch.
        batch_size: pairs in a batch.
        precision: "float32", "bfloat16" or "float16" (autocast).
        ld_alpha: weight of the tokens of an answer beyond the length of the shorter answer of its pair (LD-DPO, arXiv
            2409.06411); None for 1.
    """

    def sums(batch: dict[str, Tensor]) -> Tensor:
        labels = batch.pop("labels")
        with labels_of_batch(model, labels):
            logits = model(**batch).logits
        weights = _token_weights(labels, ld_alpha)
        # Row by row: a float32 copy of the logits of a complete batch may be larger than the model.
        rows = [
            (-functional.cross_entropy(row[:-1].float(), label[1:], ignore_index=IGNORED, reduction="none") * w).sum()
            for row, label, w in zip(logits, labels, weights, strict=True)
        ]
        return torch.stack(rows)

    return _by_batches(model, examples, collate, batch_size, precision, sums)


def rewards(
    model: nn.Module, examples: Examples, collate: Collate, batch_size: int, precision: str = "float32"
) -> PairValues:
    """The output of a reward model for each prompt with an answer; see `log_probabilities` for the arguments."""

    def outputs(batch: dict[str, Tensor]) -> Tensor:
        del batch["labels"]
        return model(**batch).logits.float().squeeze(-1)

    return _by_batches(model, examples, collate, batch_size, precision, outputs)


def implicit_rewards(policy: PairValues, examples: Examples, beta: float) -> PairValues:
    """The implicit reward of each answer; `examples` hold log p_ref, see `tokenize_pairs.with_reference`."""
    return PairValues(
        *(
            [beta * (own - row[key]) for own, row in zip(values, examples.rows, strict=True)]
            for values, key in zip(policy, (REFERENCE_CHOSEN, REFERENCE_REJECTED), strict=True)
        )
    )


def score_pairs(values: PairValues) -> Scores:
    """The scores of the rewards of pairs: `scores` are both rewards of each pair, `predictions` the preferred answer.

    Raises:
        DivergedError: a reward is not finite.
    """
    preferred = [int(better <= worse) for better, worse in zip(*values, strict=True)]
    both = [list(pair) for pair in zip(*values, strict=True)]
    losses = {"sum": pair_losses(values), "tokens": [1] * len(both)}
    return Scores(pair_metrics(values), [0] * len(both), preferred, both, losses=losses)


def pair_losses(values: PairValues) -> list[float]:
    """-log sigmoid(margin) of each pair."""
    return [_softplus(worse - better) for better, worse in zip(*values, strict=True)]


def pair_metrics(values: PairValues) -> dict[str, float]:
    """`accuracy`, the share of pairs with a margin above 0, where a margin of 0 counts half; `margin`; `loss`.

    Raises:
        DivergedError: a reward is not finite.
    """
    margins = [better - worse for better, worse in zip(*values, strict=True)]
    if not all(math.isfinite(value) for value in margins):
        raise DivergedError("a reward of an answer is not finite; a lower learning rate may help")
    return {
        "accuracy": _mean([1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins]),
        "margin": _mean(margins),
        "loss": _mean(pair_losses(values)),
    }


def _by_batches(
    model: nn.Module,
    examples: Examples,
    collate: Collate,
    batch_size: int,
    precision: str,
    values: Callable[[dict[str, Tensor]], Tensor],
) -> PairValues:
    chosen, rejected = [0.0] * len(examples), [0.0] * len(examples)
    with evaluation_mode(model, precision) as device:
        for indices in batches_by_length(pair_lengths(examples), batch_size):
            batch = to_device(collate([examples[index] for index in indices]), device)
            both = values(batch).tolist()
            for index, better, worse in zip(indices, both[: len(indices)], both[len(indices) :], strict=True):
                chosen[index], rejected[index] = better, worse
    return PairValues(chosen, rejected)


def _token_weights(labels: Tensor, ld_alpha: float | None) -> Tensor:
    """The weight of each predicted token, (2 n, tokens - 1)."""
    learnt = labels[:, 1:] != IGNORED
    weights = learnt.float()
    if ld_alpha is None:
        return weights
    lengths = learnt.sum(1)
    shorter = torch.minimum(*lengths.chunk(2)).repeat(2)
    return torch.where(learnt.cumsum(1) > shorter[:, None], ld_alpha * weights, weights)


def _softplus(value: float) -> float:
    """log(1 + exp(value)), without overflow."""
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)

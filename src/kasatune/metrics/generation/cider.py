"""CIDEr against several references, as the COCO caption scorer has it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kasatune.metrics.generation.ngrams import NGram, count_ngrams
from kasatune.metrics.generation.tokens import treebank_tokens

_LENGTH = 4
_SPREAD = 6.0  # tokens


@dataclass(frozen=True)
class _Weighted:
    """A text's n-grams for n = 1..4 with their tf-idf weights, the norm of each, and the number of its bigrams."""

    weights: list[dict[NGram, float]]
    norms: list[float]
    bigrams: int


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The mean of `cider_segments`, at least 0."""
    scores = cider_segments(predictions, references)
    return sum(scores) / len(scores)


def cider_segments(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """10 mean over references and n = 1..4 of exp(-d^2 / 72) sum(min(g, h) h) / (|g| |h|) of each prediction.

    g and h are the tf-idf vectors of n-grams of prediction and reference, with idf = log(predictions / predictions
    that have the n-gram in some reference); d is their difference in length. All is 0 for a single prediction, whose
    idf is 0. This is what the scorer calls CIDEr: the paper's CIDEr-D without its stemming.

    Source: Vedantam et al., CVPR 2015.
    """
    tokens = [treebank_tokens(text) for text in predictions]
    others = [[treebank_tokens(text) for text in texts] for texts in references]
    found: Counter[NGram] = Counter()
    for group in others:
        found.update({gram for text in group for n in range(1, _LENGTH + 1) for gram in count_ngrams(text, n)})
    return [
        10 * sum(_similarity(own, _weigh(text, found, len(others))) for text in group) / len(group)
        for own, group in (
            (_weigh(text, found, len(others)), group) for text, group in zip(tokens, others, strict=True)
        )
    ]


def _weigh(tokens: Sequence[str], found: Counter[NGram], rows: int) -> _Weighted:
    weights = [
        {gram: count * math.log(rows / max(1, found[gram])) for gram, count in count_ngrams(tokens, n).items()}
        for n in range(1, _LENGTH + 1)
    ]
    norms = [math.sqrt(sum(weight**2 for weight in grams.values())) for grams in weights]
    return _Weighted(weights, norms, max(0, len(tokens) - 1))


def _similarity(own: _Weighted, other: _Weighted) -> float:
    total = 0.0
    for n in range(_LENGTH):
        if own.norms[n] and other.norms[n]:
            shared = own.weights[n].keys() & other.weights[n].keys()
            product = sum(min(own.weights[n][gram], other.weights[n][gram]) * other.weights[n][gram] for gram in shared)
            total += product / (own.norms[n] * other.norms[n])
    return total / _LENGTH * math.exp(-((own.bigrams - other.bigrams) ** 2) / (2 * _SPREAD**2))

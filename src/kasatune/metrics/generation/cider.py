"""CIDEr against several references, as the COCO caption scorer computes it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kasatune.metrics.generation.ngrams import NGram, count_ngrams
from kasatune.metrics.generation.tokenization import treebank_tokens

_LONGEST = 4
_SIGMA = 6.0  # tokens


@dataclass(frozen=True)
class _TfIdf:
    """tf-idf weights of a text's n-grams for n = 1..4, the norm for each n, and the number of bigrams."""

    weights: list[dict[NGram, float]]
    norms: list[float]
    bigrams: int


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The mean of `cider_segments`, at least 0."""
    scores = cider_segments(predictions, references)
    return sum(scores) / len(scores)


def cider_segments(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """10 mean over references and n = 1..4 of exp(-d^2 / 72) sum(min(g, h) h) / (|g| |h|) of each prediction.

    g and h are the tf-idf vectors of the n-grams of prediction and reference, with idf = log(predictions / predictions
    that have the n-gram in some reference); d is their difference in length. A single prediction scores 0, since its
    idf is 0. The scorer calls this CIDEr; it is the paper's CIDEr-D without stemming.

    Source: Vedantam et al., CVPR 2015.
    """
    predicted = [treebank_tokens(text) for text in predictions]
    groups = [[treebank_tokens(text) for text in texts] for texts in references]
    frequency: Counter[NGram] = Counter()
    for group in groups:
        frequency.update({gram for text in group for n in range(1, _LONGEST + 1) for gram in count_ngrams(text, n)})
    scores: list[float] = []
    for tokens, group in zip(predicted, groups, strict=True):
        own = _tf_idf(tokens, frequency, len(groups))
        similarities = [_similarity(own, _tf_idf(text, frequency, len(groups))) for text in group]
        scores.append(10 * sum(similarities) / len(group))
    return scores


def _tf_idf(tokens: Sequence[str], frequency: Counter[NGram], rows: int) -> _TfIdf:
    weights = [
        {gram: count * math.log(rows / max(1, frequency[gram])) for gram, count in count_ngrams(tokens, n).items()}
        for n in range(1, _LONGEST + 1)
    ]
    norms = [math.sqrt(sum(weight**2 for weight in grams.values())) for grams in weights]
    return _TfIdf(weights, norms, max(0, len(tokens) - 1))


def _similarity(own: _TfIdf, other: _TfIdf) -> float:
    total = 0.0
    for n in range(_LONGEST):
        if own.norms[n] and other.norms[n]:
            shared = own.weights[n].keys() & other.weights[n].keys()
            product = sum(min(own.weights[n][gram], other.weights[n][gram]) * other.weights[n][gram] for gram in shared)
            total += product / (own.norms[n] * other.norms[n])
    return total / _LONGEST * math.exp(-((own.bigrams - other.bigrams) ** 2) / (2 * _SIGMA**2))

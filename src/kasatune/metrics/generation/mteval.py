"""BLEU and NIST of a corpus, as the E2E challenge's Python scorer has them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from kasatune.metrics.generation.ngrams import NGram, clipped_matches, count_ngrams
from kasatune.metrics.generation.tokens import mteval_tokens

_BLEU_LENGTH = 4
_NIST_LENGTH = 5
_NIST_BETA = math.log(0.5) / math.log(1.5) ** 2  # the penalty is 1/2 at 2/3 of the references' length


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """min(1, exp(1 - r/c)) exp(mean over n = 1..4 of log p_n), between 0 and 1.

    p_n: clipped n-gram matches / n-grams of the predictions, over the whole corpus. c: tokens predicted; r: tokens of
    the references that are nearest in length, the shorter of two as near. No smoothing: 0 where some p_n is 0.

    Source: Papineni et al., ACL 2002; mteval-v13a for tokens, case ignored.
    """
    matches, totals = [0] * _BLEU_LENGTH, [0] * _BLEU_LENGTH
    predicted = expected = 0
    for tokens, others in _tokenized(predictions, references):
        predicted += len(tokens)
        expected += min((abs(len(other) - len(tokens)), len(other)) for other in others)[1]
        for n in range(_BLEU_LENGTH):
            matches[n] += clipped_matches(tokens, others, n + 1).total()
            totals[n] += max(0, len(tokens) - n)
    if not all(matches):
        return 0.0
    logarithm = sum(math.log(match / total) for match, total in zip(matches, totals, strict=True)) / _BLEU_LENGTH
    return math.exp(logarithm + min(0.0, 1 - expected / predicted))


def nist(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """exp(b log^2 min(1, c/r)) sum over n = 1..5 of (information of the matches) / (n-grams of the predictions).

    The information of w_1..w_n is log2(count(w_1..w_{n-1}) / count(w_1..w_n)) over all references. c: tokens
    predicted; r: mean length of a prediction's references, summed. b = log(1/2) / log^2(3/2). At least 0, no upper
    bound.

    Source: Doddington, HLT 2002; mteval-v13a for tokens, case ignored.
    """
    rows = _tokenized(predictions, references)
    counts = _reference_counts([other for _, others in rows for other in others])
    information, totals = [0.0] * _NIST_LENGTH, [0] * _NIST_LENGTH
    predicted, expected = 0, 0.0
    for tokens, others in rows:
        predicted += len(tokens)
        expected += sum(map(len, others)) / len(others)
        for n in range(_NIST_LENGTH):
            totals[n] += max(0, len(tokens) - n)
            for gram, matches in clipped_matches(tokens, others, n + 1).items():
                information[n] += matches * math.log2(counts[gram[:-1]] / counts[gram])
    if not predicted:
        return 0.0
    penalty = math.exp(_NIST_BETA * math.log(min(1.0, predicted / expected)) ** 2)
    return penalty * sum(known / total for known, total in zip(information, totals, strict=True) if total)


def _tokenized(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[tuple[list[str], list[list[str]]]]:
    pairs = zip(predictions, references, strict=True)
    return [(mteval_tokens(text), [mteval_tokens(other) for other in others]) for text, others in pairs]


def _reference_counts(references: Sequence[Sequence[str]]) -> Counter[NGram]:
    """Counts of the n-grams of all references up to five tokens; the empty one counts every token."""
    counts: Counter[NGram] = Counter()
    for tokens in references:
        counts[()] += len(tokens)
        for n in range(1, _NIST_LENGTH + 1):
            counts.update(count_ngrams(tokens, n))
    return counts

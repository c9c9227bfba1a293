"""NIST of a corpus, as the E2E challenge's Python scorer computes it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from kasatune.metrics.generation.ngrams import NGram, clipped_matches, count_ngrams
from kasatune.metrics.generation.tokenization import mteval_tokens

_LONGEST = 5
_BETA = math.log(0.5) / math.log(1.5) ** 2  # the penalty is 1/2 at 2/3 of the references' length


def nist(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """exp(b log^2 min(1, c/r)) sum over n = 1..5 of (information of the matches) / (n-grams of the predictions).

    The information of w_1..w_n is log2(count(w_1..w_{n-1}) / count(w_1..w_n)) over all references. c: number of
    predicted tokens; r: mean length of each prediction's references, summed. b = log(1/2) / log^2(3/2). At least 0, no
    upper bound.

    Source: Doddington, HLT 2002; mteval-v13a for tokens, case ignored.
    """
    pairs = zip(predictions, references, strict=True)
    rows = [(mteval_tokens(text), [mteval_tokens(other) for other in others]) for text, others in pairs]
    counts = _reference_counts([other for _, others in rows for other in others])
    information, totals = [0.0] * _LONGEST, [0] * _LONGEST
    predicted, expected = 0, 0.0
    for tokens, others in rows:
        predicted += len(tokens)
        expected += sum(map(len, others)) / len(others)
        for n in range(_LONGEST):
            totals[n] += max(0, len(tokens) - n)
            for gram, matches in clipped_matches(tokens, others, n + 1).items():
                information[n] += matches * math.log2(counts[gram[:-1]] / counts[gram])
    if not predicted:
        return 0.0
    penalty = math.exp(_BETA * math.log(min(1.0, predicted / expected)) ** 2)
    return penalty * sum(known / total for known, total in zip(information, totals, strict=True) if total)


def _reference_counts(references: Sequence[Sequence[str]]) -> Counter[NGram]:
    """Counts of the n-grams of all references up to five tokens; the empty n-gram counts every token."""
    counts: Counter[NGram] = Counter()
    for tokens in references:
        counts[()] += len(tokens)
        for n in range(1, _LONGEST + 1):
            counts.update(count_ngrams(tokens, n))
    return counts

"""ROUGE-L against several references, as the COCO caption scorer computes it."""

from __future__ import annotations

from collections.abc import Sequence

from kasatune.metrics.generation.tokenization import treebank_tokens
from kasatune.metrics.longest_common_subsequence import lcs_length

_BETA = 1.2


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The mean of `rouge_l_segments`."""
    scores = rouge_l_segments(predictions, references)
    return sum(scores) / len(scores)


def rouge_l_segments(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """(1 + b^2) P R / (R + b^2 P) of each prediction, b = 1.2, between 0 and 1.

    With LCS the longest common subsequence of tokens, P is the maximum over the references of LCS / predicted tokens, R
    the maximum of LCS / reference tokens; the two maxima may come from different references.

    Source: Lin, ACL workshop 2004; Chen et al., arXiv 1504.00325 for the maxima and b.
    """
    return [
        _score(treebank_tokens(text), [treebank_tokens(other) for other in others])
        for text, others in zip(predictions, references, strict=True)
    ]


def _score(tokens: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    lengths = [(lcs_length(tokens, other), len(other)) for other in references]
    longest = max(lcs for lcs, _ in lengths)
    if not longest:
        return 0.0
    precision, recall = longest / len(tokens), max(lcs / total for lcs, total in lengths if total)
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)

"""ROUGE-L against several references, as the COCO caption scorer has it."""

from __future__ import annotations

from collections.abc import Sequence

from kasatune.metrics.generation.tokens import treebank_tokens

_BETA = 1.2


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The mean of `rouge_l_segments`."""
    scores = rouge_l_segments(predictions, references)
    return sum(scores) / len(scores)


def rouge_l_segments(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """(1 + b^2) P R / (R + b^2 P) of each prediction, b = 1.2, between 0 and 1.

    With lcs the longest common subsequence of tokens: P is the most of lcs / tokens predicted over the references, R
    the most of lcs / tokens of the reference; the two may come from different references.

    Source: Lin, ACL workshop 2004; Chen et al., arXiv 1504.00325 for the maxima and b.
    """
    return [
        _score(treebank_tokens(text), [treebank_tokens(other) for other in others])
        for text, others in zip(predictions, references, strict=True)
    ]


def _score(tokens: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    common = [(_common(tokens, other), len(other)) for other in references]
    best = max(length for length, _ in common)
    if not best:
        return 0.0
    precision, recall = best / len(tokens), max(length / total for length, total in common if total)
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    before = [0] * (len(b) + 1)
    for token in a:
        after = [0]
        for index, other in enumerate(b):
            after.append(before[index] + 1 if token == other else max(before[index + 1], after[index]))
        before = after
    return before[-1]

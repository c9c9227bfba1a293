"""Forgetting at matched task score: what two methods forgot when their main scores were the same."""

from __future__ import annotations

from collections.abc import Sequence

from kasatune.experiments.compare.method_result import MethodResult
from kasatune.experiments.compare.verdict import lower_is_better

Point = tuple[float, float, float]
"""Epoch, main score and forgetting of one evaluation."""


def at_matched_score(result: MethodResult, other: MethodResult) -> list[float]:
    """For each common seed, forgetting of `result` minus that of `other` at the score that both reached.

    That score is the worse of the two final ones. Between two evaluations both score and forgetting are interpolated
    linearly. A seed whose methods were evaluated once only has no such pair and is left out.
    """
    mine, theirs = result.curves(), other.curves()
    lower = lower_is_better(result.primary)
    differences = []
    for seed in mine:
        curve, other_curve = mine[seed], theirs.get(seed, [])
        if len(curve) < 2 or len(other_curve) < 2:
            continue
        finals = (curve[-1][1], other_curve[-1][1])
        level = max(finals) if lower else min(finals)
        differences.append(forgetting_at(curve, level, lower=lower) - forgetting_at(other_curve, level, lower=lower))
    return differences


def forgetting_at(curve: Sequence[Point], level: float, *, lower: bool) -> float:
    """Forgetting where the score first reaches `level`; that of the first evaluation if it is past it already.

    Args:
        curve: the evaluations of a run, in order; the last one reaches `level`.
        level: the score.
        lower: whether smaller scores are better.
    """

    def reached(score: float) -> bool:
        return score <= level if lower else score >= level

    index = next((index for index, point in enumerate(curve) if reached(point[1])), len(curve) - 1)
    if index == 0:
        return curve[0][2]
    (_, score, forgotten), (_, next_score, next_forgotten) = curve[index - 1], curve[index]
    share = 1.0 if next_score == score else (level - score) / (next_score - score)
    return forgotten + share * (next_forgotten - forgotten)

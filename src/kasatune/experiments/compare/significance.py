"""Tests of significance of a comparison: paired differences to the reference, baseline checks, wins and ranks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from kasatune.experiments.compare.method_result import MethodResult
from kasatune.experiments.compare.spec import ComparisonSpec
from kasatune.metrics.bootstrap import resampled_scores, seeds_and_rows_interval
from kasatune.metrics.hypothesis_tests import holm, paired_t

LEVEL = 0.05
BETTER, WORSE, NO_DIFFERENCE, NOT_TESTED = "better", "worse", "no difference shown", "not tested"


def add_differences(
    spec: ComparisonSpec, groups: Sequence[Sequence[MethodResult]], tasks: Sequence[dict[str, Any]]
) -> None:
    """Add "difference" to each result: the paired difference to the reference, its tests and a verdict.

    A method is better or worse if both hold: the paired t-test over seeds has p < 0.05 after Holm's correction for all
    tests of the comparison, and the interval over resampled seeds and resampled rows excludes 0. The first shows that
    the difference carries over to other seeds, the second that it carries over to other rows. The fitted head is a
    baseline and is not tested.
    """
    tested: list[dict[str, Any]] = []
    for group, task in zip(groups, tasks, strict=True):
        reference = next((result for result in group if result.method.variant.text == spec.reference), None)
        for result, entry in zip(group, task["results"], strict=True):
            if reference is None or result is reference:
                entry["difference"] = None
                continue
            entry["difference"] = difference = _difference(result, reference)
            if difference["p"] is not None and not entry["fitted"]:
                tested.append(difference)
    for difference, p in zip(tested, holm([difference["p"] for difference in tested]), strict=True):
        difference["p_holm"] = p
    for task in tasks:
        for entry in task["results"]:
            if entry["difference"] is not None:
                entry["difference"]["verdict"] = _verdict(entry["difference"])


def check_baselines(group: Sequence[MethodResult], task: dict[str, Any]) -> dict[str, Any]:
    """Whether the best trained method of a task beats the fitted head and the majority class.

    If it does not, the task cannot distinguish methods. "Beats" means that the interval of the difference, over
    resampled seeds and rows, lies above 0.
    """
    scored = [(result, entry) for result, entry in zip(group, task["results"], strict=True) if result.scores]
    trained = [result for result, entry in scored if not entry["fitted"]]
    head = next((result for result, entry in scored if entry["fitted"]), None)
    if not trained:
        return {"best": None, "against_head": None, "against_majority": None, "counts": None}
    best = max(trained, key=lambda result: statistics.fmean(result.scores.values()))
    against_majority = _against_majority(best, task["majority"])
    against_head = _interval(best, head) if head is not None else None
    intervals = [against_head, against_majority]
    counts = None if None in intervals else all(interval[1] > 0 for interval in intervals if interval is not None)
    return {
        "best": best.method.variant.text,
        "against_head": against_head,
        "against_majority": against_majority,
        "counts": counts,
    }


def over_tasks(spec: ComparisonSpec, tasks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each method: wins, ties and losses against the reference, and its average rank over the tasks it ran on.

    A tie is a task where no difference was shown. Rank 1 is the best mean score; equal scores share their mean rank.
    The fitted head is not ranked.
    """
    ranks: dict[str, list[float]] = {variant.text: [] for variant in spec.variants}
    verdicts: dict[str, list[str]] = {variant.text: [] for variant in spec.variants}
    for task in tasks:
        ranked = [entry for entry in task["results"] if entry["mean"] is not None and not entry["fitted"]]
        for entry, rank in zip(ranked, rankdata([-entry["mean"] for entry in ranked]) if ranked else (), strict=True):
            ranks[entry["method"]].append(float(rank))
            if entry["difference"] is not None:
                verdicts[entry["method"]].append(entry["difference"]["verdict"])
    return [
        {
            "method": text,
            "wins": outcomes.count(BETTER),
            "ties": outcomes.count(NO_DIFFERENCE),
            "losses": outcomes.count(WORSE),
            "not_tested": outcomes.count(NOT_TESTED),
            "tasks": len(ranks[text]),
            "average_rank": statistics.fmean(ranks[text]) if ranks[text] else None,
        }
        for text, outcomes in verdicts.items()
        if ranks[text]
    ]


def _difference(result: MethodResult, reference: MethodResult) -> dict[str, Any]:
    common = [seed for seed in result.scores if seed in reference.scores]
    values = [result.scores[seed] - reference.scores[seed] for seed in common]
    return {
        "seeds": len(common),
        "mean": statistics.fmean(values) if values else None,
        "interval": interval[1:] if (interval := _interval(result, reference)) else None,
        "p": paired_t(values),
        "p_holm": None,
    }


def _interval(result: MethodResult, other: MethodResult) -> list[float] | None:
    """[mean, low, high] of the paired difference over resampled seeds and rows."""
    mine, theirs = result.resampled, other.resampled
    common = [seed for seed in result.scores if seed in other.scores]
    if mine is None or theirs is None or not common:
        return None
    table = np.stack([mine[seed] - theirs[seed] for seed in common])
    mean = statistics.fmean(result.scores[seed] - other.scores[seed] for seed in common)
    return list(seeds_and_rows_interval(table, mean))


def _against_majority(result: MethodResult, majority: float) -> list[float] | None:
    if result.resampled is None:
        return None
    data = result.method.data
    scored = data.splits["validation"].labels
    constant: Any = 0.0
    if data.kind == "classification":
        answer = statistics.mode(data.splits["train"].labels)
        resampled = resampled_scores(data.primary, scored, [[answer] * len(scored)])
        constant = 0.0 if resampled is None else resampled[0]
    table = np.stack([scores - constant for scores in result.resampled.values()])
    return list(seeds_and_rows_interval(table, statistics.fmean(result.scores.values()) - majority))


def _verdict(difference: dict[str, Any]) -> str:
    p, interval, mean = difference["p_holm"], difference["interval"], difference["mean"]
    if p is None or interval is None or mean is None:
        return NOT_TESTED
    if p >= LEVEL or interval[0] <= 0 <= interval[1]:
        return NO_DIFFERENCE
    return BETTER if mean > 0 else WORSE

"""How the methods of a comparison stand to each other: differences with their tests, tasks that count, ranks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata

from kasatune.experiments.compare.spec import Request
from kasatune.metrics.resampling import resampled_scores, seeds_and_rows_interval
from kasatune.metrics.significance import holm, paired_t

if TYPE_CHECKING:
    from kasatune.experiments.compare.results import Result

LEVEL = 0.05
BETTER, WORSE, NO_DIFFERENCE, NOT_TESTED = "better", "worse", "no difference shown", "not tested"


def compare_to_reference(request: Request, groups: Sequence[Sequence[Result]], tasks: Sequence[dict[str, Any]]) -> None:
    """Enter "difference" into each result: the reference's score subtracted seed by seed, tested, and a verdict.

    A method is better or worse where both hold: the paired t-test over the seeds, after Holm's correction for all
    tests of the comparison, is below 0.05; and the interval over resampled seeds and resampled rows excludes 0. The
    first says that other seeds would agree, the second that other rows would. The fitted head is a baseline, and is
    not among the tests.
    """
    tested: list[dict[str, Any]] = []
    for group, task in zip(groups, tasks, strict=True):
        reference = next((one for one in group if one.cell.variant.text == request.reference), None)
        for result, entry in zip(group, task["results"], strict=True):
            if reference is None or result is reference:
                entry["difference"] = None
                continue
            entry["difference"] = difference = _difference(result, reference)
            if difference["p"] is not None and not entry["fitted"]:
                tested.append(difference)
    for difference, p in zip(tested, holm([one["p"] for one in tested]), strict=True):
        difference["p_holm"] = p
    for task in tasks:
        for entry in task["results"]:
            if entry["difference"] is not None:
                entry["difference"]["verdict"] = _verdict(entry["difference"])


def count_tasks(group: Sequence[Result], task: dict[str, Any]) -> dict[str, Any]:
    """Whether a task tells anything: its best trained method beats the fitted head and the majority class.

    "beats" means that the interval of the difference, over resampled seeds and rows, lies above 0.
    """
    trained = [one for one, entry in zip(group, task["results"], strict=True) if one.scores and not entry["fitted"]]
    head = next(
        (one for one, entry in zip(group, task["results"], strict=True) if one.scores and entry["fitted"]), None
    )
    if not trained:
        return {"best": None, "against_head": None, "against_majority": None, "counts": None}
    best = max(trained, key=lambda one: statistics.fmean(one.scores.values()))
    against_majority = _against_majority(best, task["majority"])
    against_head = _interval(best, head) if head is not None else None
    found = [against_head, against_majority]
    counts = None if None in found else all(interval[1] > 0 for interval in found if interval is not None)
    return {
        "best": best.cell.variant.text,
        "against_head": against_head,
        "against_majority": against_majority,
        "counts": counts,
    }


def overall(request: Request, tasks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each method: wins, ties and losses against the reference, and its mean rank over the tasks that it ran on.

    A tie is a task where no difference was shown. Rank 1 is the best mean score; equal ones share their mean rank. The
    fitted head is not ranked.
    """
    ranks: dict[str, list[float]] = {variant.text: [] for variant in request.variants}
    verdicts: dict[str, list[str]] = {variant.text: [] for variant in request.variants}
    for task in tasks:
        there = [entry for entry in task["results"] if entry["mean"] is not None and not entry["fitted"]]
        for entry, rank in zip(there, rankdata([-entry["mean"] for entry in there]) if there else (), strict=True):
            ranks[entry["method"]].append(float(rank))
            if entry["difference"] is not None:
                verdicts[entry["method"]].append(entry["difference"]["verdict"])
    return [
        {
            "method": text,
            "wins": found.count(BETTER),
            "ties": found.count(NO_DIFFERENCE),
            "losses": found.count(WORSE),
            "not_tested": found.count(NOT_TESTED),
            "tasks": len(ranks[text]),
            "average_rank": statistics.fmean(ranks[text]) if ranks[text] else None,
        }
        for text, found in verdicts.items()
        if ranks[text]
    ]


def _difference(result: Result, reference: Result) -> dict[str, Any]:
    common = [seed for seed in result.scores if seed in reference.scores]
    values = [result.scores[seed] - reference.scores[seed] for seed in common]
    return {
        "seeds": len(common),
        "mean": statistics.fmean(values) if values else None,
        "interval": interval[1:] if (interval := _interval(result, reference)) else None,
        "p": paired_t(values),
        "p_holm": None,
    }


def _interval(result: Result, other: Result) -> list[float] | None:
    """[mean, low, high] of the paired difference over resampled seeds and rows."""
    mine, theirs = result.table, other.table
    common = [seed for seed in result.scores if seed in other.scores]
    if mine is None or theirs is None or not common:
        return None
    table = np.stack([mine[seed] - theirs[seed] for seed in common])
    mean = statistics.fmean(result.scores[seed] - other.scores[seed] for seed in common)
    return list(seeds_and_rows_interval(table, mean))


def _against_majority(result: Result, majority: float) -> list[float] | None:
    if result.table is None:
        return None
    data = result.cell.data
    scored = data.splits["validation"].labels
    constant: Any = 0.0
    if data.kind == "classification":
        answer = statistics.mode(data.splits["train"].labels)
        found = resampled_scores(data.primary, scored, [[answer] * len(scored)])
        constant = 0.0 if found is None else found[0]
    table = np.stack([scores - constant for scores in result.table.values()])
    return list(seeds_and_rows_interval(table, statistics.fmean(result.scores.values()) - majority))


def _verdict(difference: dict[str, Any]) -> str:
    p, interval, mean = difference["p_holm"], difference["interval"], difference["mean"]
    if p is None or interval is None or mean is None:
        return NOT_TESTED
    if p >= LEVEL or interval[0] <= 0 <= interval[1]:
        return NO_DIFFERENCE
    return BETTER if mean > 0 else WORSE

"""Tests of a comparison: paired differences to the reference by seed and row, baseline checks, wins and ranks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import rankdata

from kasatune.experiments.compare.base_run import BaseOnTask
from kasatune.experiments.compare.endpoint_rows import Floats, constant_rows, run_rows
from kasatune.experiments.compare.matched_forgetting import at_matched_score
from kasatune.experiments.compare.method_result import MethodResult
from kasatune.experiments.compare.primary_endpoint import as_record
from kasatune.experiments.compare.spec import ComparisonSpec
from kasatune.experiments.compare.verdict import (
    BETTER,
    EQUIVALENT,
    MATCHED,
    NOT_TESTED,
    WORSE,
    as_difference,
    decide,
    lower_is_better,
)
from kasatune.metrics.seeds_by_rows import MeanOfTable, mean_of_seeds, mean_of_table

ANALYSIS = (
    "Differences are paired by seed and by row, both of which count as random: two-way crossed random effects, the "
    "standard error from the mean squares of the analysis of variance, Student's t with Satterthwaite's degrees of "
    "freedom. Better or worse: p of the two-sided test is below 0.05. Equivalent: p of both one-sided tests against "
    "the margin (TOST) is below 0.05. Not inferior: p of the one-sided test against the margin is below 0.05. The "
    "primary difference is tested alone; the exploratory ones are corrected by Holm's method, the tests of one kind "
    "together"
)


def add_differences(
    spec: ComparisonSpec, groups: Sequence[Sequence[MethodResult]], tasks: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """Add "difference" to each result and endpoint: the paired difference to the reference, its tests and verdicts.

    The fitted head is a baseline and is not tested.

    Returns:
        The primary endpoint with its difference; None without one.
    """
    primary = None if spec.primary is None else {**as_record(spec.primary), "difference": None}
    alone: list[tuple[str, dict[str, Any]]] = []
    others: list[tuple[str, dict[str, Any]]] = []
    for group, task in zip(groups, tasks, strict=True):
        by_text = {result.method.variant.text: result for result in group}
        reference = by_text.get(spec.reference)
        for result, entry in zip(group, task["results"], strict=True):
            entry["difference"] = None
            for metric in [*result.endpoints, MATCHED]:
                if reference is None or result is reference:
                    continue
                difference = _difference(spec, result, reference, metric)
                if metric == result.primary:
                    entry["difference"] = difference
                elif metric == MATCHED:
                    if difference["mean"] is None:
                        continue
                    entry["endpoints"][metric] = _only_difference(difference)
                else:
                    entry["endpoints"][metric]["difference"] = difference
                if entry["fitted"]:
                    continue
                if primary is not None and _is(primary, task["name"], metric, result, spec.reference):
                    primary["difference"] = difference
                    alone.append((metric, difference))
                else:
                    others.append((metric, difference))
        if primary is not None and primary["task"] == task["name"] and primary["difference"] is None:
            method, other = by_text.get(primary["method"]), by_text.get(primary["reference"])
            if method is not None and other is not None:
                primary["difference"] = _difference(spec, method, other, primary["metric"], primary["margin"])
                alone.append((primary["metric"], primary["difference"]))
    if primary is not None and primary["difference"] is not None:
        _set_margin(primary)
    decide(alone, others)
    return primary


def check_baselines(group: Sequence[MethodResult], base: BaseOnTask | None) -> dict[str, Any]:
    """Whether the best trained method of a task beats the baselines.

    The baselines are the fitted head and the majority class, or the untouched base where text is generated. If they are
    not beaten, the task cannot distinguish methods. "Beats" means that the 95 % interval of the difference, with seeds
    and rows random, lies on the better side of 0.
    """
    unknown: dict[str, Any] = dict.fromkeys(("best", "against_head", "against_majority", "against_base", "counts"))
    scored = [result for result in group if result.scores]
    trained = [result for result in scored if not result.method.is_fitted]
    head = next((result for result in scored if result.method.is_fitted), None)
    if not trained:
        return unknown
    primary = trained[0].primary
    pick = min if lower_is_better(primary) else max
    best = pick(trained, key=lambda result: statistics.fmean(result.scores.values()))
    checks: dict[str, list[float] | None]
    if best.method.data.kind == "generation":
        checks = {"against_base": _against_base(best, base)}
    else:
        checks = {
            "against_head": None if head is None else _with_interval(mean_difference(best, head, primary)),
            "against_majority": _against_majority(best),
        }
    counts = None
    if None not in checks.values():
        counts = all(beats(interval, primary) for interval in checks.values() if interval is not None)
    return {**unknown, "best": best.method.variant.text, **checks, "counts": counts}


def beats(interval: Sequence[float], metric: str) -> bool:
    """Whether [mean, low, high] of a difference lies on the better side of 0."""
    return interval[2] < 0 if lower_is_better(metric) else interval[1] > 0


def over_tasks(spec: ComparisonSpec, tasks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each method: wins, ties and losses against the reference, and its average rank over the tasks it ran on.

    A tie is a task on which it is equivalent, and neither better nor worse. Rank 1 is the best mean score; equal scores
    share their mean rank. The fitted head is not ranked.
    """
    ranks: dict[str, list[float]] = {variant.text: [] for variant in spec.variants}
    verdicts: dict[str, list[str]] = {variant.text: [] for variant in spec.variants}
    for task in tasks:
        ranked = [entry for entry in task["results"] if entry["mean"] is not None and not entry["fitted"]]
        sign = 1 if lower_is_better(task["primary"]) else -1
        for entry, rank in zip(ranked, rankdata([sign * e["mean"] for e in ranked]) if ranked else (), strict=True):
            ranks[entry["method"]].append(float(rank))
            if entry["difference"] is not None:
                verdicts[entry["method"]].append(entry["difference"]["verdict"])
    return [
        {
            "method": text,
            "wins": outcomes.count(BETTER),
            "ties": outcomes.count(EQUIVALENT),
            "losses": outcomes.count(WORSE),
            "undecided": sum(outcome not in (BETTER, EQUIVALENT, WORSE, NOT_TESTED) for outcome in outcomes),
            "not_tested": outcomes.count(NOT_TESTED),
            "tasks": len(ranks[text]),
            "average_rank": statistics.fmean(ranks[text]) if ranks[text] else None,
        }
        for text, outcomes in verdicts.items()
        if ranks[text]
    ]


def mean_difference(result: MethodResult, other: MethodResult, metric: str) -> MeanOfTable | None:
    """The mean paired difference of a score, with seeds and rows random; None with fewer than two common seeds.

    Rows are held fixed if their values are not known.
    """
    mine, theirs = result.values(metric), other.values(metric)
    common = [seed for seed in mine if seed in theirs]
    differences = [mine[seed] - theirs[seed] for seed in common]
    if len(common) < 2 or not np.isfinite(differences).all():
        return None
    rows, other_rows = result.rows(metric), other.rows(metric)
    if rows is None or other_rows is None or len(rows[common[0]]) != len(other_rows[common[0]]):
        return mean_of_seeds(differences)
    table = np.stack([rows[seed] - other_rows[seed] for seed in common])
    return replace(mean_of_table(table), estimate=statistics.fmean(differences))


def _difference(
    spec: ComparisonSpec, result: MethodResult, other: MethodResult, metric: str, margin: float | None = None
) -> dict[str, Any]:
    if metric == MATCHED:
        values = at_matched_score(result, other)
        seeds, mean = len(values), mean_of_seeds(values) if len(values) > 1 else None
    else:
        mine, theirs = result.values(metric), other.values(metric)
        values = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
        seeds, mean = len(values), mean_difference(result, other, metric)
    difference = as_difference(mean, metric, margin or spec.margin(metric), seeds)
    if mean is None and values:
        difference["mean"] = statistics.fmean(values)
    return difference


def _set_margin(primary: dict[str, Any]) -> None:
    """Test the primary difference against the margin of the endpoint, where it differs from the score's."""
    difference, margin = primary["difference"], primary["margin"]
    if difference["margin"] == margin or difference["standard_error"] is None:
        return
    mean = MeanOfTable(
        difference["mean"], difference["standard_error"], difference["df"], difference["seeds"], 0, 0.0, 0.0, 0.0
    )
    again = as_difference(mean, primary["metric"], margin, difference["seeds"])
    difference.update({key: again[key] for key in ("margin", "p_equivalent", "p_not_inferior")})


def _only_difference(difference: dict[str, Any]) -> dict[str, Any]:
    empty = dict.fromkeys(("mean", "sd", "iqm", "interval"))
    return {"n": difference["seeds"], "values": [], **empty, "difference": difference}


def _is(primary: Mapping[str, Any], task: str, metric: str, result: MethodResult, reference: str) -> bool:
    pair = (task, metric, result.method.variant.text, reference)
    return pair == (primary["task"], primary["metric"], primary["method"], primary["reference"])


def _with_interval(mean: MeanOfTable | None) -> list[float] | None:
    return None if mean is None else [mean.estimate, *mean.interval()]


def _against_constant(result: MethodResult, constant: Floats | float, score: float) -> list[float] | None:
    rows = result.rows(result.primary)
    if rows is None or len(rows) < 2:
        return None
    mean = mean_of_table(np.stack([values - constant for values in rows.values()]))
    return _with_interval(replace(mean, estimate=statistics.fmean(result.scores.values()) - score))


def _against_majority(result: MethodResult) -> list[float] | None:
    data = result.method.data
    scored = data.splits["validation"].labels
    if data.kind != "classification":
        return _against_constant(result, 0.0, 0.0)
    constant = constant_rows(data.primary, scored, statistics.mode(data.splits["train"].labels))
    return None if constant is None else _against_constant(result, constant, float(constant.mean()))


def _against_base(result: MethodResult, base: BaseOnTask | None) -> list[float] | None:
    run = None if base is None else base.result
    rows = None if run is None else run_rows(run.folder, result.task, result.primary)
    if run is None or rows is None:
        return None
    return _against_constant(result, rows, run.metrics["metrics"][result.primary])

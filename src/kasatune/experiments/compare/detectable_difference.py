"""The smallest difference that the seeds of a comparison can show at 80 % power (`kasatune compare --plan`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kasatune.data.tasks.dataset import TaskData
from kasatune.evaluation.text_scores import prompt_numbers
from kasatune.evaluation.unrelated_text import WINDOW
from kasatune.experiments.compare.comparison_file import read_comparison
from kasatune.experiments.compare.endpoint_rows import endpoint_names
from kasatune.experiments.compare.forgetting import FORGETTING
from kasatune.experiments.compare.method_on_task import MethodOnTask
from kasatune.experiments.compare.spec import ComparisonSpec
from kasatune.metrics.row_values import MOST_GROUPS
from kasatune.metrics.seeds_by_rows import MeanOfTable, mean_of_seeds, planned_standard_error
from kasatune.metrics.small_sample import detectable_effect

ALPHA, POWER = 0.05, 0.8


def smallest_differences(
    spec: ComparisonSpec, methods: Sequence[MethodOnTask], pilot: Path | None
) -> list[dict[str, Any]]:
    """What these seeds can show, for each endpoint of each method against the reference.

    A difference is tested alone at 5 %; the exploratory ones of a comparison are corrected and show less.

    Args:
        spec: the comparison.
        methods: its methods on its tasks, with their rows.
        pilot: directory of an earlier comparison, whose variances are used; None for standard deviations.

    Returns:
        For each {"task", "method", "metric", "smallest", "unit", "margin", "exceeds_margin"}: `unit` is "score", or
        "sd" for standard deviations of the paired difference over the seeds, where there is no pilot. `smallest` is
        None with one seed, or where the pilot lacks the method.

    Raises:
        InputError: the pilot is missing or damaged.
    """
    seeds = len(spec.seeds)
    if pilot is None:
        smallest = detectable_effect(seeds - 1, ALPHA, POWER) / math.sqrt(seeds) if seeds > 1 else None
        return [_line("", "", "", smallest, "sd", None)]
    earlier = {task["name"]: task for task in read_comparison(pilot)["tasks"]}
    reference = spec.reference
    lines = []
    for method in methods:
        if method.variant.text == reference or method.is_fitted or method.place[1] < 0:
            continue
        data = method.data
        for metric in endpoint_names(data.name, data.primary, data.part_tasks):
            mean = _from_pilot(earlier.get(method.task.name), method.variant.text, reference, metric)
            smallest = None
            if mean is not None and seeds > 1:
                rows = _number_of_rows(data, metric, spec.unrelated.tokens)
                error, df = planned_standard_error(mean, seeds, rows)
                smallest = detectable_effect(df, ALPHA, POWER) * error
            margin = spec.margin(metric)
            lines.append(_line(method.task.name, method.variant.text, metric, smallest, "score", margin))
    return lines


def _line(
    task: str, method: str, metric: str, smallest: float | None, unit: str, margin: float | None
) -> dict[str, Any]:
    exceeds = None if smallest is None or margin is None else smallest > margin
    return {
        "task": task,
        "method": method,
        "metric": metric,
        "smallest": smallest,
        "unit": unit,
        "margin": margin,
        "exceeds_margin": exceeds,
    }


def _from_pilot(task: Mapping[str, Any] | None, method: str, reference: str, metric: str) -> MeanOfTable | None:
    """The difference of a method to the reference in the pilot, with its variances."""
    entries = {entry["method"]: entry for entry in (task or {}).get("results", ())}
    mine, other = entries.get(method), entries.get(reference)
    if task is None or mine is None or other is None:
        return None
    main = metric == task["primary"]
    difference = mine["difference"] if main else (mine["endpoints"].get(metric) or {}).get("difference")
    if difference and difference.get("variances"):
        variances = difference["variances"]
        return MeanOfTable(
            difference["mean"],
            difference["standard_error"],
            difference["df"],
            difference["seeds"],
            difference["rows"],
            variances["seeds"],
            variances["rows"],
            variances["residual"],
        )
    if not main:
        return None
    scores = [{run["seed"]: run["score"] for run in entry["runs"]} for entry in (mine, other)]
    paired = [scores[0][seed] - scores[1][seed] for seed in scores[0] if _scored(scores, seed)]
    return mean_of_seeds(paired) if len(paired) > 1 else None


def _scored(scores: Sequence[Mapping[int, float | None]], seed: int) -> bool:
    return all(each.get(seed) is not None for each in scores)


def _number_of_rows(data: TaskData, metric: str, tokens: int) -> int:
    """How many rows, or groups of them, count as random in a score."""
    if metric == FORGETTING:
        return max(2, math.ceil(tokens / WINDOW))
    part, _, metric = metric.rpartition("/")
    rows = data.splits[part or "validation"]
    if data.kind == "generation":
        return max(prompt_numbers(rows)) + 1 if metric not in ("accuracy", "acc", "acc_norm") else len(rows)
    return len(rows) if metric in ("accuracy", "loss") else min(len(rows), MOST_GROUPS)

"""Collect the results of a comparison from its finished runs: the content of comparison.json."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kasatune.experiments.compare.base_run import BaseOnTask
from kasatune.experiments.compare.comparison_file import checked
from kasatune.experiments.compare.method_on_task import MethodOnTask
from kasatune.experiments.compare.method_result import MethodResult
from kasatune.experiments.compare.registration import with_first_run
from kasatune.experiments.compare.resumable_scheduler import Progress
from kasatune.experiments.compare.significance import ANALYSIS, add_differences, check_baselines, over_tasks
from kasatune.experiments.compare.spec import PROTOCOLS, ComparisonSpec
from kasatune.experiments.compare.text_samples import text_samples
from kasatune.experiments.compare.verdict import lower_is_better
from kasatune.io.environment import processor, versions
from kasatune.metrics import classification_scores, regression_scores
from kasatune.metrics.small_sample import wilson_interval


def collect_results(
    spec: ComparisonSpec,
    methods: Sequence[MethodOnTask],
    progress: Progress,
    *,
    threads: int,
    command: str,
    registration: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of comparison.json for the runs that are finished so far."""
    groups: dict[str, list[MethodResult]] = {task.name: [] for task in spec.tasks}
    bases = {method.task.name: method for method in methods if isinstance(method, BaseOnTask)}
    for method in methods:
        if not isinstance(method, BaseOnTask):
            groups[method.task.name].append(MethodResult(method))
    tasks = [_task(groups[task.name], bases.get(task.name)) for task in spec.tasks]
    primary = add_differences(spec, list(groups.values()), tasks)
    for task, group in zip(tasks, groups.values(), strict=True):
        task["counts"] = check_baselines(group, bases.get(task["name"]))
    metrics = {metric for task in tasks for entry in task["results"] for metric in entry["endpoints"]}
    metrics |= {task["primary"] for task in tasks} | ({primary["metric"]} if primary else set())
    return checked(
        {
            "format": 1,
            "command": command,
            "protocol": spec.protocol,
            "protocol_in_words": PROTOCOLS[spec.protocol],
            "reference": spec.reference,
            "seeds": list(spec.seeds),
            "search": {**asdict(spec.search), "applies": spec.search.trials > 1},
            "progress": asdict(progress),
            "complete": progress.there == progress.planned,
            "methods": [variant.text for variant in spec.variants],
            "tasks": tasks,
            "overall": over_tasks(spec, tasks),
            "margins": {metric: spec.margin(metric) for metric in sorted(metrics) if spec.margin(metric) is not None},
            "primary": primary,
            "registration": None if registration is None else with_first_run(registration, methods),
            "analysis": ANALYSIS,
            "machine": {"processor": processor(), "processors": os.cpu_count(), "threads_per_run": threads},
            "versions": versions(),
        }
    )


def _task(group: Sequence[MethodResult], base: BaseOnTask | None) -> dict[str, Any]:
    method = group[0].method
    recipe, data = method.task.recipe, method.data
    return {
        "name": method.task.name,
        "task": data.name,
        "model": recipe.model.base_name,
        "primary": data.primary,
        "rows": {split: len(rows) for split, rows in data.splits.items() if split in ("train", "validation")},
        "labels": len(data.label_names) if data.label_names else None,
        "data_source": data.source,
        "data_sha256": data.sha256,
        "notes": list(data.notes),
        "training": {
            key: getattr(recipe.training, key)
            for key in ("epochs", "max_steps", "batch_size", "schedule", "warmup_ratio", "weight_decay", "precision")
        },
        "max_length": recipe.task.max_length,
        "shared_method_settings": {
            key: getattr(recipe.method, key) for key in ("r", "alpha", "dropout", "target_modules", "beta", "gamma")
        },
        "majority": (majority := _majority(method)),
        "results": [_with_collapsed(result, majority if base is None else _base_score(base)) for result in group],
        "base": None
        if base is None or base.result is None
        else {"run": base.result.id, "metrics": base.result.metrics["metrics"]},
        "texts": [] if base is None else text_samples(group, base),
    }


def _base_score(base: BaseOnTask) -> float | None:
    return None if base.result is None else base.result.metrics["metrics"].get(base.data.primary)


def _with_collapsed(result: MethodResult, baseline: float | None) -> dict[str, Any]:
    """The entry of a result, with the share of runs that failed or do not beat `baseline`."""
    entry = result.as_dict()
    finished = len(result.method.finals)
    if finished and baseline is not None and not entry["fitted"]:
        better = sum(
            score < baseline if lower_is_better(result.primary) else score > baseline
            for score in result.scores.values()
        )
        count = finished - better
        interval = list(wilson_interval(count / finished, finished))
        entry["collapsed"] = {"count": count, "seeds": finished, "interval": interval}
    return entry


def _majority(method: MethodOnTask) -> float | None:
    """The main score of a constant answer: the most common training label, or the mean training value."""
    data = method.data
    if data.kind == "generation":
        return None
    train, scored = data.splits["train"].labels, data.splits["validation"].labels
    if data.kind == "classification":
        answer = statistics.mode(train)
        classes = len(data.label_names or ()) or None
        return classification_scores([data.primary], [answer] * len(scored), scored, classes)[data.primary]
    if data.primary in ("pearson", "spearman"):
        return 0.0  # the correlation with a constant
    return regression_scores([data.primary], [statistics.fmean(train)] * len(scored), scored)[data.primary]

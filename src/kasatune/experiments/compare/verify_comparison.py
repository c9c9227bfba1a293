"""Verify a comparison: recompute its numbers from the files of its runs and compare them with comparison.json."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kasatune.evaluation.evaluate import CheckLine
from kasatune.experiments.compare.comparison_file import COMPARISON, read_comparison
from kasatune.experiments.compare.endpoint_rows import run_rows
from kasatune.experiments.compare.hyperparameter_search import best_trial
from kasatune.experiments.compare.method_result import summary
from kasatune.experiments.compare.run_id import digest
from kasatune.experiments.compare.run_store import RUNS, FinishedRun, read_run
from kasatune.io.atomic import finite
from kasatune.io.run_layout import PREDICTIONS
from kasatune.metrics import classification_scores, regression_scores
from kasatune.metrics.bootstrap import bootstrap_interval
from kasatune.training.better_score import LOWER_IS_BETTER

_FIRST_WITH_ROWS = 3  # the schema version from which on intervals count rows as random
_LOSS_TOLERANCE = 1e-5  # of a loss that is summed in float32 in batches
_SCORES = "are the same in comparison.json and metrics.json, and follow from the predictions of the run"


def is_comparison(directory: Path) -> bool:
    """Whether a directory holds the report of a comparison and its runs."""
    return (directory / COMPARISON).is_file() and (directory / RUNS).is_dir()


def verified(out: Path) -> Iterator[CheckLine]:
    """Check runs, IDs, scores, chosen settings and summaries; yields (name, whether it holds, detail).

    Scores are recomputed from the predictions that every run keeps; choices and means from the scores. Weights are
    deleted unless the comparison kept adapters; a run's recipe.yaml trains them again.

    Raises:
        InputError: comparison.json is damaged.
    """
    comparison = read_comparison(out)
    results = [(task, entry) for task in comparison["tasks"] for entry in task["results"]]
    recorded = [(task, record) for task, entry in results for record in _records(entry)]
    runs = {record["run"]: read_run(out / RUNS, record["run"]) for _, record in recorded}
    readable = {run_id: run for run_id, run in runs.items() if run is not None}
    yield "runs", *_all([run_id for run_id in runs if run_id not in readable], len(runs), "are present and readable")
    misnamed = [run_id for run_id, run in readable.items() if not _has_its_id(run)]
    yield "names", *_all(misnamed, len(readable), "have the ID of their settings")
    done = [
        (task, record, readable[record["run"]])
        for task, record in recorded
        if record["run"] in readable and readable[record["run"]].done
    ]
    wrong_scores = [run.id for task, record, run in done if not _scores_hold(task, record, run)]
    yield "scores", *_all(wrong_scores, len(done), _SCORES)
    searched = [(task, entry) for task, entry in results if entry["search"] and entry["search"]["chosen"]]
    wrong = [f"{entry['method']} on {task['name']}" for task, entry in searched if not _choice_holds(task, entry)]
    yield "chosen settings", *_all(wrong, len(searched), "are those of the best trial")
    summarized = [(task, entry) for task, entry in results if entry["n"]]
    wrong = [
        f"{entry['method']} on {task['name']}"
        for task, entry in summarized
        if not _summary_holds(task, entry, readable, comparison["schema_version"])
    ]
    yield "means and intervals", *_all(wrong, len(summarized), "follow from the scores of their seeds")


def _records(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The reported runs and the runs of the trials of a result."""
    yield from entry["runs"]
    for trial in entry["search"]["trials"] if entry["search"] else ():
        yield from trial["runs"] or [trial]


def _all(wrong: list[str], number: int, statement: str) -> tuple[bool | None, str]:
    if not number:
        return None, "none is finished"
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return False, f"{len(wrong)} of {number} do not: {', '.join(wrong[:3])}{more}"
    return True, f"{number} {statement}"


def _has_its_id(run: FinishedRun) -> bool:
    return digest(run.run.get("identity") or {}) == run.id == run.run.get("id")


def _scores_hold(task: Mapping[str, Any], record: Mapping[str, Any], run: FinishedRun) -> bool:
    """Whether comparison.json, metrics.json and predictions.json agree on a run's main score."""
    primary = task["primary"]
    score = run.metrics["metrics"].get(primary)
    if record["score"] != score:
        return False
    if record.get("metrics") is not None and record["metrics"] != run.metrics["metrics"]:
        return False
    try:
        answers = json.loads((run.folder / PREDICTIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if run.metrics["kind"] == "generation":
        rows = run_rows(run.folder, task["task"], primary)
        return rows is not None and math.isclose(float(rows.mean()), score, rel_tol=_LOSS_TOLERANCE)
    if run.metrics["kind"] == "regression":
        recomputed = regression_scores([primary], answers["predictions"], answers["labels"])
    else:
        recomputed = classification_scores([primary], answers["predictions"], answers["labels"], task["labels"])
    return finite(recomputed)[primary] == score


def _choice_holds(task: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    trials, primary = entry["search"]["trials"], task["primary"]
    scores = [None if trial["score"] is None else {primary: trial["score"], "loss": trial["loss"]} for trial in trials]
    best = best_trial(scores, primary, lower_is_better=primary in LOWER_IS_BETTER)
    means = all(_mean_holds(trial, key) for trial in trials for key in ("score", "loss"))
    return means and best is not None and trials[best]["settings"] == entry["search"]["chosen"]


def _mean_holds(trial: Mapping[str, Any], key: str) -> bool:
    """Whether the score of a trial is the mean over its runs; none if one of them has none."""
    values = [run[key] for run in trial["runs"]]
    if not values:  # a file of an earlier version
        return True
    return trial[key] == (None if None in values else statistics.fmean(values))


def _summary_holds(
    task: Mapping[str, Any], entry: Mapping[str, Any], runs: Mapping[str, FinishedRun], schema_version: int
) -> bool:
    scored = [record for record in entry["runs"] if record["score"] is not None]
    values = [record["score"] for record in scored]
    if schema_version < _FIRST_WITH_ROWS:
        interval = bootstrap_interval(values)
        recomputed = {
            "n": len(values),
            "mean": interval.estimate,
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            "interval": [interval.low, interval.high] if len(values) > 1 else None,
        }
    else:
        folders = [runs[record["run"]].folder for record in scored if record["run"] in runs]
        tables = [run_rows(folder, task["task"], task["primary"]) for folder in folders]
        rows = [table for table in tables if table is not None]
        complete = len(rows) == len(scored) and len({len(table) for table in rows}) == 1
        recomputed = summary(task["primary"], values, rows if complete else None)
        if len(folders) < len(scored):  # reported as missing already
            del recomputed["interval"]
    return finite(recomputed) == {key: entry[key] for key in recomputed}

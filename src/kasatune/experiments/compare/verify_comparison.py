"""The numbers of a comparison made again from the files of its runs, and held against comparison.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kasatune.errors import InputError
from kasatune.evaluation.recompute import Line
from kasatune.experiments.compare.hyperparameter_search import best_trial
from kasatune.experiments.compare.run_id import digest
from kasatune.experiments.compare.run_store import COMPARISON, RUNS, Finished, read_run
from kasatune.io.atomic import finite
from kasatune.metrics import classification_scores, regression_scores
from kasatune.metrics.intervals import bootstrap_interval
from kasatune.runs.directory import PREDICTIONS
from kasatune.training.callback import LOWER_IS_BETTER


def is_comparison(directory: Path) -> bool:
    """Whether a directory holds the report of a comparison and its runs."""
    return (directory / COMPARISON).is_file() and (directory / RUNS).is_dir()


def verified(out: Path) -> Iterator[Line]:
    """Runs, their names, scores, choices and summaries of a comparison: (name, whether it holds, figure).

    Scores are made again from the answers that every run keeps, what was chosen and the means from the scores. The
    weights of a run are gone, unless the comparison was told to keep them; its recipe.yaml makes them again.

    Raises:
        InputError: comparison.json is damaged.
    """
    try:
        found = json.loads((out / COMPARISON).read_text(encoding="utf-8"))
        results = [(task, entry) for task in found["tasks"] for entry in task["results"]]
        reported = [(task, one) for task, entry in results for one in _runs(entry)]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise InputError(
            f"{out / COMPARISON} cannot be read ({fault}); give the command that made it again with --report-only"
        ) from fault
    runs = {one["run"]: read_run(out / RUNS, one["run"]) for _, one in reported}
    there = {name: run for name, run in runs.items() if run is not None}
    yield "runs", *_all([name for name in runs if name not in there], len(runs), "are there and whole")
    yield "names", *_all([name for name, run in there.items() if not _is_named(run)], len(there), "tell what made them")
    done = [(task, one, there[one["run"]]) for task, one in reported if one["run"] in there and there[one["run"]].done]
    yield "scores", *_all([run.id for task, one, run in done if not _scores_hold(task, one, run)], len(done), _SCORES)
    searched = [(task, entry) for task, entry in results if entry["search"] and entry["search"]["chosen"]]
    wrong = [f"{entry['method']} on {task['name']}" for task, entry in searched if not _choice_holds(task, entry)]
    yield "chosen settings", *_all(wrong, len(searched), "are those of the best trial")
    summed = [(task, entry) for task, entry in results if entry["n"]]
    wrong = [f"{entry['method']} on {task['name']}" for task, entry in summed if not _summary_holds(entry)]
    yield "means and intervals", *_all(wrong, len(summed), "follow from the scores of their seeds")


_SCORES = "are in comparison.json as in metrics.json, and follow from the answers of the run"


def _runs(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The reported runs of a result, and its trials."""
    yield from entry["runs"]
    yield from entry["search"]["trials"] if entry["search"] else ()


def _all(wrong: list[str], number: int, words: str) -> tuple[bool | None, str]:
    if not number:
        return None, "none is finished"
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return False, f"{len(wrong)} of {number} do not hold: {', '.join(wrong[:3])}{more}"
    return True, f"{number} {words}"


def _is_named(run: Finished) -> bool:
    return digest(run.run.get("identity") or {}) == run.id == run.run.get("id")


def _scores_hold(task: Mapping[str, Any], one: Mapping[str, Any], run: Finished) -> bool:
    """The main score of a run, by comparison.json, metrics.json and predictions.json."""
    primary = task["primary"]
    recorded = run.metrics["metrics"].get(primary)
    if one["score"] != recorded or one.get("metrics", run.metrics["metrics"]) != run.metrics["metrics"]:
        return False
    try:
        answers = json.loads((run.folder / PREDICTIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if run.metrics["kind"] == "regression":
        again = regression_scores([primary], answers["predictions"], answers["labels"])
    else:
        again = classification_scores([primary], answers["predictions"], answers["labels"], task["labels"])
    return finite(again)[primary] == recorded


def _choice_holds(task: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    trials, primary = entry["search"]["trials"], task["primary"]
    scores = [None if one["score"] is None else {primary: one["score"], "loss": one["loss"]} for one in trials]
    best = best_trial(scores, primary, lower_is_better=primary in LOWER_IS_BETTER)
    return best is not None and trials[best]["settings"] == entry["search"]["chosen"]


def _summary_holds(entry: Mapping[str, Any]) -> bool:
    values = [one["score"] for one in entry["runs"] if one["score"] is not None]
    interval = bootstrap_interval(values)
    again = {
        "n": len(values),
        "mean": interval.estimate,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "interval": [interval.low, interval.high] if len(values) > 1 else None,
    }
    return finite(again) == {key: entry[key] for key in again}

"""The published numbers and ours side by side: the content of reproduction.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kasatune.experiments.reproduce.judge_scores import grades, measure_judged
from kasatune.experiments.reproduce.measured_scores import Measured, average, difference, measure
from kasatune.experiments.reproduce.published.schema import AVERAGE, Figure, Judged, scale
from kasatune.experiments.reproduce.spec import Request
from kasatune.experiments.reproduce.verdict import RULE, judge
from kasatune.io.atomic import finite
from kasatune.io.environment import processor, versions

FORMAT = 1
Outcomes = dict[tuple[str, str], list[Path] | str]
"""By task, or `grades_of` it, and method: the run directories, or why there is no score."""


def grades_of(task: str) -> str:
    """The key of a task's grades among the outcomes."""
    return f"{task}, judged"


def content(request: Request, outcomes: Outcomes, *, command: str = "", failed: bool = False) -> dict[str, Any]:
    """reproduction.json of runs that are there."""
    rows = [_row(request, figure, outcomes) for figure in _figures(request)]
    return finite(
        {
            "format": FORMAT,
            "experiment": request.experiment.name,
            "title": request.experiment.title,
            "command": command,
            "quick": request.quick,
            "model": request.model.name,
            "model_title": request.model.title,
            "base": sorted({case.recipe.model.name for case in request.cases}),
            "seeds": list(request.seeds),
            "methods": list(request.methods),
            "published": request.experiment.published,
            "unknown": list(request.experiment.unknown),
            "rule": RULE,
            "settings": request.experiment.settings,
            "differences": _common(request),
            "judged": _graded(request, outcomes),
            "figures": rows,
            "failed": failed,
            "machine": {"processor": processor()},
            "versions": versions(),
        }
    )


def _tasks(request: Request) -> list[str]:
    """The tasks of the table, without their average."""
    return list(dict.fromkeys(one.task for one in request.model.figures if one.task != AVERAGE))


def _metric(request: Request, task: str) -> str:
    """The first score of a task in the table."""
    return next(one.metric for one in request.model.figures if one.task == task)


def _figures(request: Request) -> list[Figure]:
    """The published figures of the methods that are run; a blank one where a method has none."""
    methods = {*request.methods, *request.experiment.shown}
    found = [
        one for one in request.model.figures if one.method in methods and (one.minus is None or one.minus in methods)
    ]
    there = {(one.task, one.method) for one in found}
    for task in _tasks(request):
        for method in request.methods:
            if (task, method) not in there:
                found.append(Figure(task, _metric(request, task), method, None, "nothing was published"))
    return found


def _row(request: Request, figure: Figure, outcomes: Outcomes) -> dict[str, Any]:
    ours, missing = _ours(request, figure, outcomes)
    factor = scale(figure.metric)
    score = None if ours is None else ours.score * factor
    interval = None if ours is None or ours.interval is None else (ours.interval[0] * factor, ours.interval[1] * factor)
    verdict = judge(score, interval, figure.target, _reasons(request, figure), missing)
    log = figure.log
    return {
        "task": figure.task,
        "metric": figure.metric,
        "method": figure.method,
        "minus": figure.minus,
        "paper": list(figure.paper) if isinstance(figure.paper, tuple) else figure.paper,
        "decimals": figure.decimals,
        "source": figure.source,
        "log": None
        if log is None
        else {"best": log.best, "epoch": log.epoch, "last": log.last, "last_ten": log.last_ten},
        "ours": None if ours is None else _told(ours, factor, score, interval),
        "verdict": verdict.word,
        "reasons": list(verdict.reasons),
    }


def _told(
    ours: Measured, factor: float, score: float | None, interval: tuple[float, float] | None
) -> Mapping[str, Any]:
    return {
        "score": score,
        "interval": None if interval is None else list(interval),
        "seeds": [value * factor for value in ours.values],
        "epochs": list(ours.epochs),
        "last": None if ours.last is None else ours.last * factor,
        "last_ten": None if ours.last_ten is None else ours.last_ten * factor,
        "runs": list(ours.folders),
    }


def _ours(request: Request, figure: Figure, outcomes: Outcomes) -> tuple[Measured | None, str]:
    """Our score of a figure, or why there is none."""
    if figure.minus is not None:
        second, missing = _score(request, figure.task, figure.minus, figure.metric, outcomes)
        if second is None:
            return None, missing
        first, missing = _score(request, figure.task, figure.method, figure.metric, outcomes)
        return (None, missing) if first is None else (difference(first, second), "")
    return _score(request, figure.task, figure.method, figure.metric, outcomes)


def _score(request: Request, task: str, method: str, metric: str, outcomes: Outcomes) -> tuple[Measured | None, str]:
    tasks = _tasks(request)
    if task == AVERAGE:
        parts = [_score(request, one, method, _metric(request, one), outcomes)[0] for one in tasks]
        there = [one for one in parts if one is not None]
        if len(there) < len(parts):
            return None, f"{len(there)} of its {len(parts)} tasks have a score"
        return average(there), ""
    run, split = request.experiment.run_of(task)
    outcome = outcomes.get((run, method))
    if outcome is None:
        return None, "not asked for" if method in request.methods else f"not asked for; --methods {method} runs it"
    if isinstance(outcome, str):
        return None, outcome
    how = request.experiment.judged.get(task)
    if how is not None and metric == how.metric:
        given = outcomes[grades_of(task), method]
        return (None, given) if isinstance(given, str) else (measure_judged(given, how, tasks.index(task)), "")
    own = outcomes.get((task, method))
    found = measure(outcome, metric, tasks.index(task), split)
    return found, own if isinstance(own, str) else ("" if found else "no score of it was written")


def _reasons(request: Request, figure: Figure) -> list[str]:
    """What else than in the published run was done for a figure."""
    methods = {figure.method, figure.minus}
    run = request.experiment.run_of(figure.task)[0]
    cases = [one for one in request.cases if one.method in methods and (figure.task == AVERAGE or one.task == run)]
    found = [reason for case in cases for reason in case.differences]
    how, asked = request.experiment.judged.get(figure.task), request.judging.endpoint
    if how is not None and asked is not None and figure.metric == how.metric and asked.model != how.model:
        found.append(f"judge: {asked.model} (published: {how.model})")
    return list(dict.fromkeys([*found, *figure.caveats]))


def _common(request: Request) -> list[str]:
    """The differences of all runs, each once."""
    return list(dict.fromkeys(reason for case in request.cases for reason in case.differences))


def _graded(request: Request, outcomes: Outcomes) -> list[str]:
    """What was graded by whom, one sentence a run."""
    found = []
    for case in request.cases:
        how = request.experiment.judged.get(case.task)
        folders = outcomes.get((grades_of(case.task), case.method))
        if how is not None and isinstance(folders, list) and case.folder in folders:
            found.append(f"{case.title}: {_told_grades(case.folder, how)}")
    return found


def _told_grades(folder: Path, how: Judged) -> str:
    given = grades(folder, how)
    cost = given["cost"]
    money = "" if cost["money"] is None else f", {cost['money']:.4f} by the prices given"
    return (
        f"{given['graded']} answers graded by {given['model']} with {given['prompts']} prompts, {given['failed']} not "
        f"counted; {cost['prompt_tokens']:,} prompt and {cost['completion_tokens']:,} completion tokens{money}"
    )

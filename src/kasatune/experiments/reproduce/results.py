"""The content of reproduction.json: every published number with our score and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kasatune.experiments.reproduce.judge_scores import grades, measure_judged
from kasatune.experiments.reproduce.measured_scores import Measured, average, difference, measure
from kasatune.experiments.reproduce.published.schema import AVERAGE, Figure, Judged, scale
from kasatune.experiments.reproduce.reproduction_file import checked
from kasatune.experiments.reproduce.spec import Request
from kasatune.experiments.reproduce.verdict import RULE, judge
from kasatune.io.environment import processor, versions
from kasatune.wording import agree, counted

Outcomes = dict[tuple[str, str], list[Path] | str]
"""By (task, method), or (`grades_of(task)`, method): the run directories, or why there is no score."""


def grades_of(task: str) -> str:
    """The key of a task's grades among the outcomes."""
    return f"{task}, judged"


def content(request: Request, outcomes: Outcomes, *, command: str = "", failed: bool = False) -> dict[str, Any]:
    """The content of reproduction.json, from finished runs."""
    rows = [_row(request, figure, outcomes) for figure in _figures(request)]
    return checked(
        {
            "date": datetime.now(UTC).date().isoformat(),
            "experiment": request.experiment.name,
            "title": request.experiment.title,
            "command": command,
            "quick": request.quick,
            "model": request.model.name,
            "model_title": request.model.title,
            "base": sorted({case.recipe.model.base_name for case in request.cases}),
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
    return list(dict.fromkeys(figure.task for figure in request.model.figures if figure.task != AVERAGE))


def _metric(request: Request, task: str) -> str:
    """The first metric of a task in the table."""
    return next(figure.metric for figure in request.model.figures if figure.task == task)


def _figures(request: Request) -> list[Figure]:
    """The published figures of the methods that are run; an empty figure for a method without one."""
    methods = {*request.methods, *request.experiment.shown}
    figures = [
        figure
        for figure in request.model.figures
        if figure.method in methods and (figure.minus is None or figure.minus in methods)
    ]
    published = {(figure.task, figure.method) for figure in figures}
    for task in _tasks(request):
        for method in request.methods:
            if (task, method) not in published:
                figures.append(Figure(task, _metric(request, task), method, None, "nothing was published"))
    return figures


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
        "ours": None if ours is None else _measured_entry(ours, factor, score, interval),
        "verdict": verdict.word,
        "reasons": list(verdict.reasons),
    }


def _measured_entry(
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
    """Our score for a figure, or why there is none."""
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
        parts = [_score(request, name, method, _metric(request, name), outcomes)[0] for name in tasks]
        scored = [part for part in parts if part is not None]
        if len(scored) < len(parts):
            return (
                None,
                f"{len(scored)} of its {counted(len(parts), 'task')} {agree(len(scored), 'has', 'have')} a score",
            )
        return average(scored), ""
    run, split = request.experiment.run_of(task)
    outcome = outcomes.get((run, method))
    if outcome is None:
        return None, "not selected" if method in request.methods else f"not selected; --methods {method} runs it"
    if isinstance(outcome, str):
        return None, outcome
    how = request.experiment.judged.get(task)
    if how is not None and metric == how.metric:
        graded = outcomes[grades_of(task), method]
        return (None, graded) if isinstance(graded, str) else (measure_judged(graded, how, tasks.index(task)), "")
    split_outcome = outcomes.get((task, method))
    measured = measure(outcome, metric, tasks.index(task), split)
    if isinstance(split_outcome, str):
        return measured, split_outcome
    return measured, "" if measured else "the run wrote no such score"


def _reasons(request: Request, figure: Figure) -> list[str]:
    """How our runs for a figure differ from the published one."""
    methods = {figure.method, figure.minus}
    run = request.experiment.run_of(figure.task)[0]
    cases = [c for c in request.cases if c.method in methods and (figure.task == AVERAGE or c.task == run)]
    reasons = [reason for case in cases for reason in case.differences]
    how, endpoint = request.experiment.judged.get(figure.task), request.judging.endpoint
    if how is not None and endpoint is not None and figure.metric == how.metric and endpoint.model != how.model:
        reasons.append(f"judge: {endpoint.model} (published: {how.model})")
    return list(dict.fromkeys([*reasons, *figure.caveats]))


def _common(request: Request) -> list[str]:
    """The differences of all runs, without duplicates."""
    return list(dict.fromkeys(reason for case in request.cases for reason in case.differences))


def _graded(request: Request, outcomes: Outcomes) -> list[str]:
    """Number of graded answers, judge and cost, one sentence per run."""
    sentences = []
    for case in request.cases:
        how = request.experiment.judged.get(case.task)
        folders = outcomes.get((grades_of(case.task), case.method))
        if how is not None and isinstance(folders, list) and case.folder in folders:
            sentences.append(f"{case.title}: {_grading_summary(case.folder, how)}")
    return sentences


def _grading_summary(folder: Path, how: Judged) -> str:
    judgment = grades(folder, how)
    cost = judgment["cost"]
    money = "" if cost["money"] is None else f", {cost['money']:.4f} by the prices given"
    return (
        f"{counted(judgment['graded'], 'answer')} graded by {judgment['model']} with {judgment['prompts']} prompts, "
        f"{judgment['failed']} not counted; {cost['prompt_tokens']:,} prompt and "
        f"{counted(cost['completion_tokens'], 'completion token')}{money}"
    )

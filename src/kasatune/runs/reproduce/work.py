"""Runs what is missing of a table, and puts the published numbers and ours side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kasatune.errors import KasatuneError, OutputError
from kasatune.runs.directory import check_output, check_place, finite, is_finished, remove
from kasatune.runs.display import Display
from kasatune.runs.machine import processor, versions
from kasatune.runs.reproduce.cases import RUNS, Case, Request
from kasatune.runs.reproduce.figures import AVERAGE, Figure, scale
from kasatune.runs.reproduce.measured import Measured, average, difference, measure
from kasatune.runs.reproduce.splits import FOLDER, score_splits
from kasatune.runs.reproduce.verdict import RULE, judge

FORMAT = 1
Outcomes = dict[tuple[str, str], list[Path] | str]


def check(request: Request, out: Path) -> None:
    """The runs may be written to `out`; writes nothing itself.

    Raises:
        OutputError: `out` holds something that is no reproduction, or a run of another recipe.
    """
    check_place(out)
    if out.is_dir() and any(out.iterdir()) and not (out / RUNS).is_dir():
        raise OutputError(f"{out} holds something that is no reproduction; give another directory with --out")
    for case in request.cases:
        if not case.missing:
            check_output(case.folder, case.recipe, resume=True, overwrite=False)


def reproduce(
    request: Request,
    out: Path,
    *,
    display: Display,
    tell: Callable[[str], None] = lambda text: None,
    after: Callable[[Path], None] = lambda run_dir: None,
    command: str = "",
) -> dict[str, Any]:
    """Do every run that `out` does not hold yet, and compare.

    A run that was cut off goes on where it stopped. One that fails leaves its rows of the table without a score.

    Args:
        request: the table.
        out: holds one run directory for each run.
        display: is told of the progress of each run.
        tell: is told of every run.
        after: is given the directory of each run that was finished now.
        command: what makes the table again.

    Returns:
        The content of reproduction.json.

    Raises:
        KasatuneError: not one run could be done; the fault of the last one.
    """
    check(request, out)
    (out / RUNS).mkdir(parents=True, exist_ok=True)
    outcomes: Outcomes = {}
    fault: KasatuneError | None = None
    for number, case in enumerate(request.cases, start=1):
        try:
            reason = _do(case, display, tell, after, f"{number}/{len(request.cases)}")
            if not reason:
                _score_splits(request, case, outcomes, display)
        except KasatuneError as error:
            fault, reason = error, str(error)
            tell(f"{case.title} failed: {reason}")
        _enter(outcomes, case, reason)
    if fault is not None and all(isinstance(one, str) for one in outcomes.values()):
        raise fault
    return content(request, outcomes, command=command, failed=fault is not None)


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
            "differences": _common(request),
            "figures": rows,
            "failed": failed,
            "machine": {"processor": processor()},
            "versions": versions(),
        }
    )


def _do(case: Case, display: Display, tell: Callable[[str], None], after: Callable[[Path], None], place: str) -> str:
    """Why there is no score; "" where there is one."""
    from kasatune.runs.train import train

    if case.missing:
        tell(f"{place}  {case.title}: not run: {case.missing}")
        return case.missing
    if case.folder.is_dir() and is_finished(case.folder):
        tell(f"{place}  {case.title}: is there")
        return ""
    tell(f"{place}  {case.title}")
    remove(case.folder / FOLDER)
    train(case.recipe, case.folder, resume=True, display=display)
    after(case.folder)
    return ""


def _score_splits(request: Request, case: Case, outcomes: Outcomes, display: Display) -> None:
    """Score the splits that the figures of this run are of; what cannot be scored is entered by its figure's task."""
    scored = request.experiment.scored
    tasks = {split: task for task, (run, split) in scored.items() if run == case.task}
    lacks = score_splits(case.folder, list(tasks), display) if tasks else {}
    for split, reason in lacks.items():
        if tasks[split] != case.task:
            outcomes[tasks[split], case.method] = reason


def _enter(outcomes: Outcomes, case: Case, reason: str) -> None:
    key = case.task, case.method
    before = outcomes.get(key, [])
    if reason or isinstance(before, str):
        outcomes[key] = reason or before
    else:
        outcomes[key] = [*before, case.folder]


def _tasks(request: Request) -> list[str]:
    """The tasks of the table, without their average."""
    return list(dict.fromkeys(one.task for one in request.model.figures if one.task != AVERAGE))


def _metric(request: Request, task: str) -> str:
    """The first score of a task in the table."""
    return next(one.metric for one in request.model.figures if one.task == task)


def _figures(request: Request) -> list[Figure]:
    """The published figures of the methods that are run; a blank one where a method has none."""
    methods = set(request.methods)
    found = [
        one for one in request.model.figures if one.method in methods and (one.minus is None or one.minus in methods)
    ]
    there = {(one.task, one.method) for one in found}
    for task in _tasks(request):
        for method in request.methods:
            if (task, method) not in there and not request.experiment.not_run:
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
    if request.experiment.not_run:
        return None, request.experiment.not_run
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
        return None, "not asked for"
    if isinstance(outcome, str):
        return None, outcome
    own = outcomes.get((task, method))
    found = measure(outcome, metric, tasks.index(task), split)
    return found, own if isinstance(own, str) else ("" if found else "no score of it was written")


def _reasons(request: Request, figure: Figure) -> list[str]:
    """What else than in the published run was done for a figure."""
    methods = {figure.method, figure.minus}
    run = request.experiment.run_of(figure.task)[0]
    cases = [one for one in request.cases if one.method in methods and (figure.task == AVERAGE or one.task == run)]
    found = [reason for case in cases for reason in case.differences]
    return list(dict.fromkeys([*found, *figure.caveats]))


def _common(request: Request) -> list[str]:
    """The differences of all runs, each once."""
    return list(dict.fromkeys(reason for case in request.cases for reason in case.differences))

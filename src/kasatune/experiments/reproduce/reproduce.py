"""Reproduce a table of the paper: train, score and grade the runs that are missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kasatune.errors import KasatuneError, OutputError, WorkError
from kasatune.experiments.reproduce.extra_split_scores import score_splits
from kasatune.experiments.reproduce.judge_scores import Progress, judge_answers
from kasatune.experiments.reproduce.results import Outcomes, content, grades_of
from kasatune.experiments.reproduce.spec import RUNS, Case, Request
from kasatune.io.atomic import remove
from kasatune.io.progress import ProgressReporter
from kasatune.io.run_layout import SCORES
from kasatune.runs.directory import check_output, check_place
from kasatune.runs.metrics import is_finished


def check(request: Request, out: Path) -> None:
    """Check that the runs may be written to `out`; writes nothing.

    Raises:
        OutputError: `out` holds something other than a reproduction, or a run of another recipe.
    """
    check_place(out)
    if out.is_dir() and any(out.iterdir()) and not (out / RUNS).is_dir():
        raise OutputError(f"{out} holds something other than a reproduction; give another directory with --out")
    for case in request.cases:
        if not case.missing:
            check_output(case.folder, case.recipe, resume=True, overwrite=False)


def reproduce(
    request: Request,
    out: Path,
    *,
    display: ProgressReporter,
    tell: Callable[[str], None] = lambda text: None,
    after: Callable[[Path], None] = lambda run_dir: None,
    judging: Progress = lambda what, done, total: None,
    command: str = "",
) -> dict[str, Any]:
    """Train every run that `out` does not hold yet, and compare its score with the published one.

    An interrupted run is resumed. The rows of a run that fails are left without a score.

    Args:
        request: the table and its runs.
        out: directory of the run directories.
        display: receives the progress of each run.
        tell: called with a line at the start of every run, and for faults.
        after: called with the directory of each run that this call has finished.
        judging: called with the number of graded answers, and of all.
        command: the command line that writes the table again.

    Returns:
        The content of reproduction.json.

    Raises:
        InputError: the judge refuses the key or the model, or rows cannot be graded.
        KasatuneError: every run failed; the error of the last one.
    """
    check(request, out)
    (out / RUNS).mkdir(parents=True, exist_ok=True)
    outcomes: Outcomes = {}
    fault: KasatuneError | None = None
    for number, case in enumerate(request.cases, start=1):
        try:
            reason = _run_case(case, display, tell, after, f"{number}/{len(request.cases)}")
            if not reason:
                _score_splits(request, case, outcomes, display)
        except KasatuneError as error:
            fault, reason = error, str(error)
            tell(f"{case.title} failed: {reason}")
        _enter(outcomes, case.task, case, reason)
        if not reason:
            fault = _judge(request, case, outcomes, tell, judging) or fault
    if fault is not None and all(isinstance(outcome, str) for outcome in outcomes.values()):
        raise fault
    return content(request, outcomes, command=command, failed=fault is not None)


def _run_case(
    case: Case, display: ProgressReporter, tell: Callable[[str], None], after: Callable[[Path], None], place: str
) -> str:
    """Train one run unless it is finished; returns why there is no score, or ""."""
    from kasatune.training.train import train

    if case.missing:
        tell(f"{place}  {case.title}: not run: {case.missing}")
        return case.missing
    if case.folder.is_dir() and is_finished(case.folder):
        tell(f"{place}  {case.title}: already finished")
        return ""
    tell(f"{place}  {case.title}")
    remove(case.folder / SCORES)
    train(case.recipe, case.folder, resume=True, display=display)
    after(case.folder)
    return ""


def _score_splits(request: Request, case: Case, outcomes: Outcomes, display: ProgressReporter) -> None:
    """Score the splits that figures are computed on; records why for each split that cannot be scored."""
    scored = request.experiment.scored
    tasks = {split: task for task, (run, split) in scored.items() if run == case.task}
    lacks = score_splits(case.folder, list(tasks), display) if tasks else {}
    for split, reason in lacks.items():
        if tasks[split] != case.task:
            outcomes[tasks[split], case.method] = reason


def _judge(
    request: Request, case: Case, outcomes: Outcomes, tell: Callable[[str], None], progress: Progress
) -> WorkError | None:
    """Have the answers of a run graded, if its task is graded; returns the error of an unreachable judge.

    Raises:
        InputError: the judge refuses the key or the model, or rows cannot be graded.
    """
    how = request.experiment.judged.get(case.task)
    if how is None:
        return None
    fault = None
    try:
        reason = judge_answers(case.folder, how, request.judging, progress)
    except WorkError as error:
        fault, reason = error, str(error)
        tell(f"{case.title} could not be judged: {reason}")
    _enter(outcomes, grades_of(case.task), case, reason)
    return fault


def _enter(outcomes: Outcomes, task: str, case: Case, reason: str) -> None:
    key = task, case.method
    before = outcomes.get(key, [])
    if reason or isinstance(before, str):
        outcomes[key] = reason or before
    else:
        outcomes[key] = [*before, case.folder]

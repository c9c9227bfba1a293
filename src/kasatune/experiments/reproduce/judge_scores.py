"""Grade the answers of the runs of a table with a judge model, and read the grades: RUN/judge."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from kasatune.errors import InputError
from kasatune.experiments.reproduce.measured_scores import Measured
from kasatune.experiments.reproduce.published.schema import Experiment, Judged
from kasatune.io.run_layout import JUDGE
from kasatune.llm_client import Endpoint, Prices, require_endpoint
from kasatune.metrics.bootstrap import resampled_scores

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Judging:
    """How the answers of runs are graded.

    Attributes:
        endpoint: the judge; None to generate answers without grading them.
        questions: MT-Bench's file or folder; None without one.
        prompts: a file of judge prompts in MT-Bench's form; None for kasatune's own prompts.
        prices: prices of the judge, or None.
    """

    endpoint: Endpoint | None = None
    questions: Path | None = None
    prompts: Path | None = None
    prices: Prices | None = None


def check_judging(experiment: Experiment, judging: Judging) -> None:
    """Validate the judge, its questions and its prompts before anything is run.

    Raises:
        InputError: the table has nothing to grade; the key, the judge's address, the questions or the prompts are
            wrong.
    """
    if judging == Judging():
        return
    if not experiment.judged:
        raise InputError(
            f"--judge and --questions are for a table that a judge grades: instruct, not {experiment.name}"
        )
    from kasatune.evaluation.judge import load_prompts, read_questions

    if judging.endpoint is not None:
        require_endpoint(judging.endpoint)
    if judging.questions is not None:
        read_questions(judging.questions)
    if judging.prompts is not None:
        load_prompts(judging.prompts)


def judge_answers(run_dir: Path, how: Judged, judging: Judging, progress: Progress) -> str:
    """Generate the answers of a run, and grade them if there is a judge; existing answers and grades are reused.

    Returns:
        Why there are no grades; "" if there are.

    Raises:
        InputError: the judge refuses the key or does not know the model, or the rows cannot be graded.
        WorkError: the judge cannot be reached, or none of its replies contains a grade.
    """
    from kasatune.evaluation.judge.judge_run import JudgeSettings, answer_run, judge_run

    endpoint, questions = judging.endpoint, None if how.protocol == "score" else judging.questions
    answerable = how.protocol == "score" or questions is not None
    if endpoint is not None and answerable:
        judge_run(run_dir, JudgeSettings(endpoint, questions, judging.prompts, prices=judging.prices), progress)
        return ""
    lacks = ["a judge with --judge MODEL"] * (endpoint is None)
    lacks += ["MT-Bench's questions with --questions FOLDER"] * (not answerable)
    answers = f"; the answers are in {answer_run(run_dir, questions, progress)}" if answerable else ""
    return f"name {' and '.join(lacks)}{answers}"


def grades(run_dir: Path, how: Judged) -> Mapping[str, Any]:
    """The grades in the run directory of a graded run, with model, prompts and cost."""
    return json.loads((run_dir / JUDGE / f"{how.protocol}.json").read_text(encoding="utf-8"))


def measure_judged(folders: Sequence[Path], how: Judged, number: int) -> Measured:
    """The mean grade of graded runs that differ only in their seeds.

    Its interval resamples the questions with a grade for every seed.

    Args:
        folders: the run directories, at least one.
        how: how they were graded.
        number: index of the task, used as the seed of its resamples.
    """
    judgments = [grades(folder, how) for folder in folders]
    by_question = [_by_question(judgment["grades"]) for judgment in judgments]
    common = sorted(set.intersection(*map(set, by_question)))
    table = np.array([[means[name] for name in common] for means in by_question])
    return Measured(
        values=tuple(judgment["mean"] for judgment in judgments),
        resampled=resampled_scores("mean", [0] * len(common), table, seed=number) if common else None,
        folders=tuple(map(str, folders)),
    )


def _by_question(graded: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean grade of each question, over its turns; failed grades are left out."""
    values = defaultdict(list)
    for grade in graded:
        if grade["value"] is not None:
            values[grade["question_id"]].append(grade["value"])
    return {question: fmean(grades) for question, grades in values.items()}

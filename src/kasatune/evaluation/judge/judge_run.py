"""Judge a run: generate its answers, ask a judge model to grade them, and summarize the grades."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kasatune.data.tasks import load_task
from kasatune.data.tasks.dataset import ChatRows
from kasatune.data.tasks.mixture_parts import reads_chats
from kasatune.data.tasks.mixture_rows import MixtureRows
from kasatune.data.tasks.table import TASKS
from kasatune.errors import DataError, InputError, WorkError
from kasatune.evaluation.judge import (
    Conversation,
    Grade,
    Match,
    Prompts,
    Question,
    compare_conversations,
    grade_answers,
    grade_conversations,
    load_prompts,
    own_prompts,
    read_conversations,
    read_questions,
    summarize_grades,
    summarize_matches,
)
from kasatune.evaluation.judge.generate_answers import Candidate, write_conversations
from kasatune.io.atomic import write_json
from kasatune.io.run_layout import JUDGE
from kasatune.llm_client import (
    AnswerCache,
    CachedClient,
    Endpoint,
    Prices,
    ProgressCallback,
    Reply,
    require_endpoint,
    total_cost,
)
from kasatune.recipes.schema import Recipe
from kasatune.runs.directory import read_recipe
from kasatune.runs.metrics import read_metrics
from kasatune.wording import agree, counted

ANSWERS = "answers.jsonl"
REPLIES = "replies.jsonl"
CONVERSATIONS = "conversations.jsonl"

StageProgress = Callable[[str, int, int], None]
"""Called with a stage ("answering" or "judging"), the number of finished items and their total."""


@dataclass(frozen=True)
class JudgeSettings:
    """Settings of a judgement.

    Attributes:
        endpoint: endpoint of the judge.
        questions: MT-Bench's file or folder, for its two-turn protocol; None grades the answers to the run's own
            validation rows from 0 to 10.
        prompts: a file of judge prompts in MT-Bench's form; None for kasatune's own wording.
        against: another run, or a file of answers in MT-Bench's form, for a comparison in both orders.
        prices: prices of the judge, or None.
        split: split of the run's own rows.
        base: where the base model is now, if not where the recipe says; for `against` too, if its base is the same.
    """

    endpoint: Endpoint
    questions: Path | None = None
    prompts: Path | None = None
    against: Path | None = None
    prices: Prices | None = None
    split: str | None = None
    base: str | None = None


def answer_run(
    run_dir: Path,
    questions: Path | None = None,
    progress: StageProgress = lambda stage, done, total: None,
    *,
    base: str | None = None,
) -> Path:
    """Generate the answers that a judge would grade; cached answers are not generated again.

    Args:
        run_dir: directory of a run on chat rows.
        questions: MT-Bench's file or folder; None for the run's own validation rows.
        progress: see `StageProgress`.
        base: where the base model is now, if not where the recipe says.

    Returns:
        The file of the answers, in MT-Bench's form.

    Raises:
        InputError: the run or the questions cannot be used.
    """
    run_dir = Path(run_dir)
    recipe = _recipe(run_dir)
    to_answer = read_questions(questions) if questions else _own_questions(recipe, None)
    answers = _answers(run_dir, recipe, to_answer, progress, base)
    write_conversations(run_dir / JUDGE / CONVERSATIONS, run_dir.name, list(answers.values()))
    return run_dir / JUDGE / CONVERSATIONS


def judge_run(
    run_dir: Path, settings: JudgeSettings, progress: StageProgress = lambda stage, done, total: None
) -> dict[str, Any]:
    """Generate a run's answers and have a judge grade them.

    Every answer and reply is written to the run's folder `judge` before the next one is requested; calling this again
    resumes where it stopped and requests nothing twice.

    Args:
        run_dir: directory of a run on chat rows.
        settings: the judge and what it grades.
        progress: see `StageProgress`.

    Returns:
        An object in the form of metrics.json, with a "judge" entry in addition to `metrics`.

    Raises:
        InputError: the run, the questions, the prompts, the key or the judge's name is invalid.
        WorkError: the judge cannot be reached, or none of its replies has a valid grade.
    """
    run_dir = Path(run_dir)
    recipe, before = _recipe(run_dir), read_metrics(run_dir)
    prompts = load_prompts(settings.prompts) if settings.prompts else own_prompts()
    protocol = "pairs" if settings.against else "mt-bench" if settings.questions else "score"
    if settings.against and settings.questions is None:
        raise InputError("--against compares answers to the same questions; give the questions with --questions")
    questions = read_questions(settings.questions) if settings.questions else _own_questions(recipe, settings.split)
    require_endpoint(settings.endpoint)
    other = None if settings.against is None or settings.against.is_dir() else _others(settings.against, questions)
    folder = run_dir / JUDGE
    with AnswerCache(folder / REPLIES) as replies, CachedClient(settings.endpoint, replies) as client:
        answers = _answers(run_dir, recipe, questions, progress, settings.base)
        write_conversations(folder / CONVERSATIONS, run_dir.name, list(answers.values()))
        if settings.against is not None:
            other = other or _answers_of_other(settings.against, recipe, settings.base, questions, progress)
        graded = _grade(protocol, client, questions, answers, other, prompts, partial(progress, "judging"))
        requests_sent = client.requests_sent
    summary = summarize_matches(graded) if protocol == "pairs" else summarize_grades(graded)
    result = {
        "protocol": protocol,
        "model": settings.endpoint.model,
        "url": settings.endpoint.url,
        "prompts": str(settings.prompts) if settings.prompts else "kasatune's own",
        "questions": len(questions),
        "asked_now": requests_sent,
        **summary,
        "cost": total_cost(_replies(graded), settings.prices).to_dict(),
    }
    write_json(folder / f"{protocol}.json", {**result, "grades": [asdict(grade) for grade in graded]})
    if not summary["graded"]:
        first = summary["failures"][0]["reason"]
        raise WorkError(
            f"none of {counted(summary['failed'], 'reply')} has a valid grade ({first}); the replies are in {folder}"
        )
    return {
        **before,
        "split": settings.split or before["split"],
        "metrics": _metrics(protocol, summary),
        "judge": result,
    }


def _grade(
    protocol: str,
    client: CachedClient,
    questions: Sequence[Question],
    answers: Mapping[str, Conversation],
    other: Mapping[str, Conversation] | None,
    prompts: Prompts,
    progress: ProgressCallback,
) -> list[Any]:
    if other is not None:
        return compare_conversations(client, questions, answers, other, prompts, progress)
    grade = grade_conversations if protocol == "mt-bench" else grade_answers
    return grade(client, questions, answers, prompts, progress)


def _recipe(run_dir: Path) -> Recipe:
    recipe = read_recipe(run_dir)
    if not reads_chats(recipe.task) or TASKS[recipe.task.name].kind != "generation":
        chats = ", ".join(info.name for info in TASKS.values() if info.uses_chat_template and info.kind == "generation")
        raise InputError(f"{run_dir} was trained on {recipe.task.name}; a judge grades runs on conversations ({chats})")
    return recipe


def _own_questions(recipe: Recipe, split: str | None) -> list[Question]:
    """The rows of the recipe as questions of one turn; rows of several turns are refused."""
    data = load_task(recipe.task)
    name = split or "validation"
    rows = data.splits.get(name)
    if isinstance(rows, MixtureRows):
        rows = ChatRows.of([chat for chat in rows.chats if chat is not None])
    if not isinstance(rows, ChatRows):
        raise DataError(f"task {data.name} has no split {name!r}; its splits are {', '.join(data.splits)}")
    if any(len(chat) > 2 for chat in rows.chats):
        raise DataError(
            f"the split {name!r} has conversations of several turns; give questions with --questions instead"
        )
    return [
        Question(str(number), data.name, (chat[0][1],), (chat[1][1],))
        for number, chat in enumerate(rows.chats, start=1)
    ]


def _answers(
    run_dir: Path, recipe: Recipe, questions: Sequence[Question], progress: StageProgress, base: str | None
) -> dict[str, Conversation]:
    with AnswerCache(run_dir / JUDGE / ANSWERS) as cache:
        candidate = Candidate(run_dir, recipe, cache, base)
        return candidate.answer(questions, partial(progress, "answering"))


def _answers_of_other(
    against: Path, recipe: Recipe, base: str | None, questions: Sequence[Question], progress: StageProgress
) -> dict[str, Conversation]:
    """The answers of another run; `base` applies to it if its recipe names the same base model."""
    theirs = _recipe(against)
    same = theirs.model.base_name == recipe.model.base_name
    return _answers(against, theirs, questions, progress, base if same else None)


def _others(against: Path, questions: Sequence[Question]) -> dict[str, Conversation]:
    answers = read_conversations(against)
    missing = [
        question.id
        for question in questions
        if question.id not in answers or len(answers[question.id].turns) < len(question.turns)
    ]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if missing[5:] else "")
        raise DataError(
            f"{against}: {len(missing)} of {counted(len(questions), 'question')} "
            f"{agree(len(missing), 'has', 'have')} no answer in it ({shown})"
        )
    return answers


def _replies(graded: Sequence[Grade | Match]) -> list[Reply]:
    """Each reply once; equal requests share a reply."""
    replies: list[Reply | None] = []
    for grade in graded:
        replies += grade.replies if isinstance(grade, Match) else [grade.reply]
    return list({id(reply): reply for reply in replies if reply is not None}.values())


def _metrics(protocol: str, summary: Mapping[str, Any]) -> dict[str, float]:
    if protocol == "pairs":
        return {"win_rate": summary["win_rate"]}
    if protocol == "score":
        return {"judge_score": summary["mean"]}
    turns = {f"mt_bench_turn_{turn}": value for turn, value in summary["by_turn"].items()}
    return {"mt_bench": summary["mean"], **turns}

"""A run judged: its answers, the judge's replies, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kasatune.data.tasks import load_task
from kasatune.data.tasks.instruction import ChatRows
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
from kasatune.llm_client import AnswerCache, CachedClient, Endpoint, Prices, Reply, add_up, require_endpoint
from kasatune.recipes.schema import Recipe
from kasatune.runs.directory import JUDGE, read_metrics, read_recipe

ANSWERS = "answers.jsonl"
REPLIES = "replies.jsonl"
CONVERSATIONS = "conversations.jsonl"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class JudgeSettings:
    """How a run is judged.

    Attributes:
        endpoint: the judge.
        questions: MT-Bench's file or folder, for its two-turn protocol; None scores the answers to the run's own
            validation rows from 0 to 10.
        prompts: a file of judge prompts in MT-Bench's form; None for kasatune's own wording.
        against: another run, or a file of answers in MT-Bench's form, for a comparison in both orders.
        prices: of the judge, or None.
        split: of the run's own rows.
    """

    endpoint: Endpoint
    questions: Path | None = None
    prompts: Path | None = None
    against: Path | None = None
    prices: Prices | None = None
    split: str | None = None


def answer_run(
    run_dir: Path, questions: Path | None = None, progress: Progress = lambda what, done, total: None
) -> Path:
    """Have a run's model answer what a judge would be shown; what is answered already is not answered again.

    Args:
        run_dir: of a run on the task instruction.
        questions: MT-Bench's file or folder; None for the run's own validation rows.
        progress: as `judge_run` has it.

    Returns:
        The file of the answers, in MT-Bench's form.

    Raises:
        InputError: the run or the questions are wrong.
    """
    run_dir = Path(run_dir)
    recipe = _recipe(run_dir)
    asked = read_questions(questions) if questions else _own_questions(recipe, None)
    answers = _answers(run_dir, recipe, asked, progress)
    write_conversations(run_dir / JUDGE / CONVERSATIONS, run_dir.name, list(answers.values()))
    return run_dir / JUDGE / CONVERSATIONS


def judge_run(
    run_dir: Path, settings: JudgeSettings, progress: Progress = lambda what, done, total: None
) -> dict[str, Any]:
    """Have a run's model answer, and a judge grade the answers.

    Every answer and every reply is on the disk, in the run's folder `judge`, before the next is asked for; the same
    call again goes on where it stopped and asks for nothing twice.

    Args:
        run_dir: of a run on the task instruction.
        settings: the judge, and what is put before it.
        progress: is told what is done, how much of it, and how much there is.

    Returns:
        An object in the form of metrics.json, with "judge" beside `metrics`.

    Raises:
        InputError: the run, the questions, the prompts, the key or the judge's name is wrong.
        WorkError: the judge cannot be reached, or none of its replies could be counted.
    """
    run_dir = Path(run_dir)
    recipe, before = _recipe(run_dir), read_metrics(run_dir)
    prompts = load_prompts(settings.prompts) if settings.prompts else own_prompts()
    protocol = "pairs" if settings.against else "mt-bench" if settings.questions else "score"
    if settings.against and settings.questions is None:
        raise InputError("--against compares answers to the same questions: give them with --questions")
    questions = read_questions(settings.questions) if settings.questions else _own_questions(recipe, settings.split)
    require_endpoint(settings.endpoint)
    other = None if settings.against is None or settings.against.is_dir() else _others(settings.against, questions)
    folder = run_dir / JUDGE
    with AnswerCache(folder / REPLIES) as replies, CachedClient(settings.endpoint, replies) as asker:
        answers = _answers(run_dir, recipe, questions, progress)
        write_conversations(folder / CONVERSATIONS, run_dir.name, list(answers.values()))
        if settings.against is not None:
            other = other or _answers(settings.against, _recipe(settings.against), questions, progress)
        graded = _graded(protocol, asker, questions, answers, other, prompts, partial(progress, "judging"))
        asked = asker.asked
    summary = summarize_matches(graded) if protocol == "pairs" else summarize_grades(graded)
    result = {
        "protocol": protocol,
        "model": settings.endpoint.model,
        "url": settings.endpoint.url,
        "prompts": str(settings.prompts) if settings.prompts else "kasatune's own",
        "questions": len(questions),
        "asked_now": asked,
        **summary,
        "cost": add_up(_replies(graded), settings.prices).to_dict(),
    }
    write_json(folder / f"{protocol}.json", {**result, "grades": [asdict(one) for one in graded]})
    if not summary["graded"]:
        first = summary["failures"][0]["reason"]
        raise WorkError(f"none of {summary['failed']} replies could be counted ({first}); they are in {folder}")
    return {
        **before,
        "split": settings.split or before["split"],
        "metrics": _metrics(protocol, summary),
        "judge": result,
    }


def _graded(
    protocol: str,
    asker: CachedClient,
    questions: Sequence[Question],
    answers: Mapping[str, Conversation],
    other: Mapping[str, Conversation] | None,
    prompts: Prompts,
    told: Callable[[int, int], None],
) -> list[Any]:
    if other is not None:
        return compare_conversations(asker, questions, answers, other, prompts, told)
    grade = grade_conversations if protocol == "mt-bench" else grade_answers
    return grade(asker, questions, answers, prompts, told)


def _recipe(run_dir: Path) -> Recipe:
    recipe = read_recipe(run_dir)
    if recipe.task.name != "instruction":
        raise InputError(f"{run_dir} was trained on {recipe.task.name}; a judge grades runs on the task instruction")
    return recipe


def _own_questions(recipe: Recipe, split: str | None) -> list[Question]:
    """The rows of the recipe as questions of one turn; only rows of one turn can be scored so."""
    data = load_task(recipe.task)
    name = split or "validation"
    rows = data.splits.get(name)
    if not isinstance(rows, ChatRows):
        raise DataError(f"task {data.name} has no split {name!r}; it has: {', '.join(data.splits)}")
    if any(len(chat) > 2 for chat in rows.chats):
        raise DataError(f"the split {name!r} has conversations of several turns; give --questions for these")
    return [
        Question(str(number), data.name, (chat[0][1],), (chat[1][1],))
        for number, chat in enumerate(rows.chats, start=1)
    ]


def _answers(
    run_dir: Path, recipe: Recipe, questions: Sequence[Question], progress: Progress
) -> dict[str, Conversation]:
    with AnswerCache(run_dir / JUDGE / ANSWERS) as ledger:
        candidate = Candidate(run_dir, recipe, ledger)
        return candidate.answer(questions, partial(progress, "answering"))


def _others(against: Path, questions: Sequence[Question]) -> dict[str, Conversation]:
    found = read_conversations(against)
    short = [one.id for one in questions if len(getattr(found.get(one.id), "turns", ())) < len(one.turns)]
    if short:
        shown = ", ".join(short[:5]) + (", ..." if short[5:] else "")
        raise DataError(f"{against}: {len(short)} of {len(questions)} questions are not answered there ({shown})")
    return found


def _replies(graded: Sequence[Grade | Match]) -> list[Reply]:
    """Each reply once: equal requests share theirs."""
    found: list[Reply | None] = []
    for one in graded:
        found += one.replies if isinstance(one, Match) else [one.reply]
    return list({id(reply): reply for reply in found if reply is not None}.values())


def _metrics(protocol: str, summary: Mapping[str, Any]) -> dict[str, float]:
    if protocol == "pairs":
        return {"win_rate": summary["win_rate"]}
    if protocol == "score":
        return {"judge_score": summary["mean"]}
    turns = {f"mt_bench_turn_{turn}": value for turn, value in summary["by_turn"].items()}
    return {"mt_bench": summary["mean"], **turns}

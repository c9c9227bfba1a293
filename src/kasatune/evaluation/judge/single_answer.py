"""Grade single answers with a judge model: MT-Bench's 1 to 10 for each turn, or the paper's 0 to 10 for one answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kasatune.evaluation.judge.mt_bench_files import Conversation, Question
from kasatune.evaluation.judge.prompt_templates import Prompts
from kasatune.llm_client import CachedClient, ChatRequest, ProgressCallback, Refusal, Reply

MT_BENCH_SCALE = (1.0, 10.0)
SCORE_SCALE = (0.0, 10.0)
MAX_TOKENS = 2048  # of a judge's reply, as in MT-Bench

_RATING = re.compile(r"\[\[\s*(-?\d+(?:\.\d+)?)\s*\]\]")


@dataclass(frozen=True)
class Grade:
    """The judge's grade of one answer.

    Attributes:
        question_id: id of the question.
        category: category of the question.
        turn: 1 or 2.
        value: grade on the scale; None if the judge's reply has no valid rating.
        failure: why `value` is None.
        reply: complete reply of the judge; None if the server refused the request.
    """

    question_id: str
    category: str
    turn: int
    value: float | None
    failure: str | None
    reply: Reply | None


def grade_conversations(
    client: CachedClient,
    questions: Sequence[Question],
    answers: Mapping[str, Conversation],
    prompts: Prompts,
    progress: ProgressCallback = lambda done, total: None,
) -> list[Grade]:
    """MT-Bench's single-answer grading: every turn of every question from 1 to 10, at temperature 0.

    The judge sees both turns when it grades the second. A question with references is graded against them.

    Args:
        client: client of the judge.
        questions: with one or two turns.
        answers: by question id; each has as many turns as its question.
        prompts: by MT-Bench's names.
        progress: called with the number of grades so far and their total.

    Raises:
        InputError: see `CachedClient.ask`.
        WorkError: see `CachedClient.ask`.
    """
    turns = [(question, turn) for question in questions for turn in range(1, len(question.turns) + 1)]
    model = client.endpoint.model
    requests = [_request(model, "single", question, answers[question.id], turn, prompts) for question, turn in turns]
    return _grades(client, turns, requests, MT_BENCH_SCALE, progress)


def grade_answers(
    client: CachedClient,
    questions: Sequence[Question],
    answers: Mapping[str, Conversation],
    prompts: Prompts,
    progress: ProgressCallback = lambda done, total: None,
) -> list[Grade]:
    """Grade the first turn of every question from 0 to 10, against its reference if it has one, at temperature 0.

    The scale is the paper's for its four synthetic sets; the paper's prompt is not published, so the wording is
    kasatune's.

    Raises:
        InputError: see `CachedClient.ask`.
        WorkError: see `CachedClient.ask`.
    """
    model = client.endpoint.model
    requests = [_request(model, "score", question, answers[question.id], 1, prompts) for question in questions]
    return _grades(client, [(question, 1) for question in questions], requests, SCORE_SCALE, progress)


def parse_rating(text: str, low: float, high: float) -> float | None:
    """The number in "[[7]]" or "[[7.5]]"; None if there is none, it is outside `low` to `high`, or two differ."""
    ratings = {float(number) for number in _RATING.findall(text)}
    if len(ratings) != 1:
        return None
    value = ratings.pop()
    return value if low <= value <= high else None


def fields(question: Question, turn: int) -> dict[str, str]:
    """Values for the fields of a prompt with the question and its references."""
    values = {"question": question.turns[0]}
    for number, text in enumerate(question.turns[:turn], start=1):
        values[f"question_{number}"] = text
    for number, text in enumerate(question.references or (), start=1):
        values[f"ref_answer_{number}"] = text
    return values


def prompt_name(kind: str, question: Question, turn: int) -> str:
    """MT-Bench's name of the prompt for a turn; `kind` is "single", "score" or "pair"."""
    with_reference, without = ("-math-v1", "-v2" if kind == "pair" else "-v1")
    return f"{kind}{with_reference if question.references else without}{'-multi-turn' if turn == 2 else ''}"


def _request(
    model: str, kind: str, question: Question, answer: Conversation, turn: int, prompts: Prompts
) -> ChatRequest:
    given = {f"answer_{number}": text for number, text in enumerate(answer.turns, start=1)}
    content = {**fields(question, turn), **given, "answer": answer.turns[0]}
    return prompts[prompt_name(kind, question, turn)].request(model, content, MAX_TOKENS)


def _grades(
    client: CachedClient,
    turns: Sequence[tuple[Question, int]],
    requests: Sequence[ChatRequest],
    scale: tuple[float, float],
    progress: ProgressCallback,
) -> list[Grade]:
    grades = []
    for (question, turn), reply in zip(turns, client.ask_all(requests, progress), strict=True):
        if isinstance(reply, Refusal):
            value, failure = None, reply.reason
        else:
            value = parse_rating(reply.text, *scale)
            failure = None if value is not None else f"no single rating [[{scale[0]:g} to {scale[1]:g}]] in the reply"
        answered = reply if isinstance(reply, Reply) else None
        grades.append(Grade(question.id, question.category, turn, value, failure, answered))
    return grades

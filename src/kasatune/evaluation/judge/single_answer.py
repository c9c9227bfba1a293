"""Grades of single answers: MT-Bench's 1 to 10 for each turn, and 0 to 10 for one answer as the paper has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kasatune.evaluation.judge.mt_bench_files import Conversation, Question
from kasatune.evaluation.judge.parse_reply import rating
from kasatune.evaluation.judge.prompt_templates import Prompts
from kasatune.llm_client import CachedClient, ChatRequest, Refusal, Reply

MT_BENCH_SCALE = (1.0, 10.0)
SCORE_SCALE = (0.0, 10.0)
MAX_TOKENS = 2048  # of a judge's reply, as MT-Bench has it

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Grade:
    """What the judge made of one answer.

    Attributes:
        question_id: of the question.
        category: its category.
        turn: 1 or 2.
        value: on the scale; None where the judge's reply cannot be counted.
        failure: why `value` is None.
        reply: the judge's, whole; None where the server refused the request.
    """

    question_id: str
    category: str
    turn: int
    value: float | None
    failure: str | None
    reply: Reply | None


def grade_conversations(
    asker: CachedClient,
    questions: Sequence[Question],
    answers: Mapping[str, Conversation],
    prompts: Prompts,
    progress: Progress = lambda done, total: None,
) -> list[Grade]:
    """MT-Bench's single-answer grading: every turn of every question, 1 to 10, at temperature 0.

    The second turn is graded with both turns in sight. A question with references is graded against them.

    Args:
        asker: of the judge.
        questions: of one or two turns.
        answers: by question id; each has as many turns as its question.
        prompts: by MT-Bench's names.
        progress: is told how many grades there are, of how many.

    Raises:
        InputError: as `CachedClient.ask` has it.
        WorkError: the same.
    """
    places = [(one, turn) for one in questions for turn in range(1, len(one.turns) + 1)]
    requests = [_request(asker.endpoint.model, "single", one, answers[one.id], turn, prompts) for one, turn in places]
    return _grades(asker, places, requests, MT_BENCH_SCALE, progress)


def grade_answers(
    asker: CachedClient,
    questions: Sequence[Question],
    answers: Mapping[str, Conversation],
    prompts: Prompts,
    progress: Progress = lambda done, total: None,
) -> list[Grade]:
    """0 to 10 for the first turn of every question, against its reference where it has one, at temperature 0.

    The scale is the paper's for its four synthetic sets; the paper's prompt is not known, the wording is kasatune's.

    Raises:
        InputError: as `CachedClient.ask` has it.
        WorkError: the same.
    """
    model = asker.endpoint.model
    requests = [_request(model, "score", one, answers[one.id], 1, prompts) for one in questions]
    return _grades(asker, [(one, 1) for one in questions], requests, SCORE_SCALE, progress)


def fields(question: Question, turn: int) -> dict[str, str]:
    """The fields of a prompt that hold the question and its references."""
    found = {"question": question.turns[0]}
    for number, text in enumerate(question.turns[:turn], start=1):
        found[f"question_{number}"] = text
    for number, text in enumerate(question.references or (), start=1):
        found[f"ref_answer_{number}"] = text
    return found


def prompt_name(kind: str, question: Question, turn: int) -> str:
    """MT-Bench's name of the prompt: `kind` is "single", "score" or "pair"."""
    with_reference, without = ("-math-v1", "-v2" if kind == "pair" else "-v1")
    return f"{kind}{with_reference if question.references else without}{'-multi-turn' if turn == 2 else ''}"


def _request(
    model: str, kind: str, question: Question, answer: Conversation, turn: int, prompts: Prompts
) -> ChatRequest:
    given = {f"answer_{number}": text for number, text in enumerate(answer.turns, start=1)}
    content = {**fields(question, turn), **given, "answer": answer.turns[0]}
    return prompts[prompt_name(kind, question, turn)].request(model, content, MAX_TOKENS)


def _grades(
    asker: CachedClient,
    places: Sequence[tuple[Question, int]],
    requests: Sequence[ChatRequest],
    scale: tuple[float, float],
    progress: Progress,
) -> list[Grade]:
    grades = []
    for (question, turn), reply in zip(places, asker.ask_all(requests, progress), strict=True):
        if isinstance(reply, Refusal):
            value, failure = None, reply.reason
        else:
            value = rating(reply.text, *scale)
            failure = None if value is not None else f"no one rating [[{scale[0]:g} to {scale[1]:g}]] in the reply"
        kept = reply if isinstance(reply, Reply) else None
        grades.append(Grade(question.id, question.category, turn, value, failure, kept))
    return grades

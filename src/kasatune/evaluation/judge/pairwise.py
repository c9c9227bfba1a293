"""Compare two models answer by answer with a judge: each pair is judged in both orders, and a win must hold in both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kasatune.evaluation.judge.mt_bench_files import Conversation, Question
from kasatune.evaluation.judge.prompt_templates import Prompts
from kasatune.evaluation.judge.single_answer import MAX_TOKENS, fields, prompt_name
from kasatune.llm_client import CachedClient, ChatRequest, ProgressCallback, Refusal, Reply

Winner = Literal["first", "second", "tie"]
Verdict = Literal["A", "B", "tie"]

_VERDICT = re.compile(r"\[\[\s*([ABC])\s*\]\]")
_VERDICTS: dict[str, Verdict] = {"A": "A", "B": "B", "C": "tie"}

_STRAIGHT: dict[Verdict, Winner] = {"A": "first", "B": "second", "tie": "tie"}
_SWAPPED: dict[Verdict, Winner] = {"A": "second", "B": "first", "tie": "tie"}


@dataclass(frozen=True)
class Match:
    """The judge's verdicts on two answers to one turn.

    Attributes:
        question_id: id of the question.
        category: category of the question.
        turn: 1 or 2.
        winner: "first" or "second" if both orders agree on it, otherwise "tie"; None if a reply has no valid verdict.
        swayed: whether the order of the answers changed the verdict.
        failure: why `winner` is None.
        replies: of the judge, in the given and in the swapped order; None if the server refused the request.
    """

    question_id: str
    category: str
    turn: int
    winner: Winner | None
    swayed: bool
    failure: str | None
    replies: tuple[Reply | None, Reply | None]


def compare_conversations(
    client: CachedClient,
    questions: Sequence[Question],
    first: Mapping[str, Conversation],
    second: Mapping[str, Conversation],
    prompts: Prompts,
    progress: ProgressCallback = lambda done, total: None,
) -> list[Match]:
    """MT-Bench's pairwise comparison of every turn, at temperature 0, each pair judged in both orders.

    Args:
        client: client of the judge.
        questions: with one or two turns.
        first: answers of the first model by question id, with as many turns as the question.
        second: answers of the second model.
        prompts: by MT-Bench's names.
        progress: called with the number of verdicts so far and their total.

    Raises:
        InputError: see `CachedClient.ask`.
        WorkError: see `CachedClient.ask`.
    """
    turns = [(question, turn) for question in questions for turn in range(1, len(question.turns) + 1)]
    requests = []
    for question, turn in turns:
        for a, b in ((first, second), (second, first)):
            requests.append(_request(client.endpoint.model, question, turn, a[question.id], b[question.id], prompts))
    replies = client.ask_all(requests, progress)
    return [
        _match(question, turn, straight, swapped)
        for (question, turn), straight, swapped in zip(turns, replies[::2], replies[1::2], strict=True)
    ]


def parse_verdict(text: str) -> Verdict | None:
    """The meaning of "[[A]]", "[[B]]" or "[[C]]" (a tie); None if there is none, or two differ."""
    letters = set(_VERDICT.findall(text))
    return _VERDICTS[letters.pop()] if len(letters) == 1 else None


def _request(
    model: str, question: Question, turn: int, a: Conversation, b: Conversation, prompts: Prompts
) -> ChatRequest:
    content = fields(question, turn)
    for letter, answer in (("a", a), ("b", b)):
        content[f"answer_{letter}"] = answer.turns[0]
        content |= {f"answer_{letter}_{number}": text for number, text in enumerate(answer.turns, start=1)}
    return prompts[prompt_name("pair", question, turn)].request(model, content, MAX_TOKENS)


def _match(question: Question, turn: int, straight: Reply | Refusal, swapped: Reply | Refusal) -> Match:
    failures, winners, answered = [], [], []
    for order, meaning, reply in (("as given", _STRAIGHT, straight), ("swapped", _SWAPPED, swapped)):
        verdict = parse_verdict(reply.text) if isinstance(reply, Reply) else None
        answered.append(reply if isinstance(reply, Reply) else None)
        if verdict is not None:
            winners.append(meaning[verdict])
        else:
            reason = (
                reply.reason if isinstance(reply, Refusal) else "no single verdict [[A]], [[B]] or [[C]] in the reply"
            )
            failures.append(f"{order}: {reason}")
    agreed = len(set(winners)) == 1
    winner = None if failures else winners[0] if agreed else "tie"
    return Match(
        question.id,
        question.category,
        turn,
        winner,
        not failures and not agreed,
        "; ".join(failures) or None,
        (answered[0], answered[1]),
    )

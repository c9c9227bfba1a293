"""Two models compared answer by answer: each pair is shown in both orders, and a verdict counts if both agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kasatune.evaluation.judge.mt_bench_files import Conversation, Question
from kasatune.evaluation.judge.parse_reply import Verdict, verdict
from kasatune.evaluation.judge.prompt_templates import Prompts
from kasatune.evaluation.judge.single_answer import MAX_TOKENS, fields, prompt_name
from kasatune.llm_client import CachedClient, ChatRequest, Refusal, Reply

Winner = Literal["first", "second", "tie"]

_STRAIGHT: dict[Verdict, Winner] = {"A": "first", "B": "second", "tie": "tie"}
_SWAPPED: dict[Verdict, Winner] = {"A": "second", "B": "first", "tie": "tie"}


@dataclass(frozen=True)
class Match:
    """The judge's verdicts on two answers to one turn.

    Attributes:
        question_id: of the question.
        category: its category.
        turn: 1 or 2.
        winner: "first" or "second" where both orders say so, else "tie"; None where a reply cannot be counted.
        swayed: whether the order changed the verdict.
        failure: why `winner` is None.
        replies: of the judge, in the order given and swapped; None where the server refused the request.
    """

    question_id: str
    category: str
    turn: int
    winner: Winner | None
    swayed: bool
    failure: str | None
    replies: tuple[Reply | None, Reply | None]


def compare_conversations(
    asker: CachedClient,
    questions: Sequence[Question],
    first: Mapping[str, Conversation],
    second: Mapping[str, Conversation],
    prompts: Prompts,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Match]:
    """MT-Bench's pairwise comparison of every turn, at temperature 0, each pair asked in both orders.

    Args:
        asker: of the judge.
        questions: of one or two turns.
        first: one model's answers by question id, as many turns as the question has.
        second: the other's.
        prompts: by MT-Bench's names.
        progress: is told how many verdicts there are, of how many.

    Raises:
        InputError: as `CachedClient.ask` has it.
        WorkError: the same.
    """
    places = [(one, turn) for one in questions for turn in range(1, len(one.turns) + 1)]
    requests = []
    for question, turn in places:
        for a, b in ((first, second), (second, first)):
            requests.append(_request(asker.endpoint.model, question, turn, a[question.id], b[question.id], prompts))
    replies = asker.ask_all(requests, progress)
    return [
        _match(question, turn, straight, swapped)
        for (question, turn), straight, swapped in zip(places, replies[::2], replies[1::2], strict=True)
    ]


def _request(
    model: str, question: Question, turn: int, a: Conversation, b: Conversation, prompts: Prompts
) -> ChatRequest:
    content = fields(question, turn)
    for letter, answer in (("a", a), ("b", b)):
        content[f"answer_{letter}"] = answer.turns[0]
        content |= {f"answer_{letter}_{number}": text for number, text in enumerate(answer.turns, start=1)}
    return prompts[prompt_name("pair", question, turn)].request(model, content, MAX_TOKENS)


def _match(question: Question, turn: int, straight: Reply | Refusal, swapped: Reply | Refusal) -> Match:
    failures, winners, kept = [], [], []
    for order, meaning, reply in (("as given", _STRAIGHT, straight), ("swapped", _SWAPPED, swapped)):
        said = verdict(reply.text) if isinstance(reply, Reply) else None
        kept.append(reply if isinstance(reply, Reply) else None)
        if said is not None:
            winners.append(meaning[said])
        else:
            why = reply.reason if isinstance(reply, Refusal) else "no one verdict [[A]], [[B]] or [[C]] in the reply"
            failures.append(f"{order}: {why}")
    agreed = len(set(winners)) == 1
    winner = None if failures else winners[0] if agreed else "tie"
    return Match(
        question.id,
        question.category,
        turn,
        winner,
        not failures and not agreed,
        "; ".join(failures) or None,
        (kept[0], kept[1]),
    )

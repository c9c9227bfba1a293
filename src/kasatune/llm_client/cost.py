"""The cost of requests to a served model: requests, tokens, and money if prices are given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from kasatune.llm_client.request import Reply


@dataclass(frozen=True)
class Prices:
    """Prices of a million tokens, in the user's currency.

    Attributes:
        prompt: of prompt tokens.
        completion: of completion tokens.
    """

    prompt: float
    completion: float


@dataclass(frozen=True)
class Cost:
    """The total cost of a number of replies, cached ones included.

    Attributes:
        answers: number of replies.
        prompt_tokens: as counted by the server.
        completion_tokens: as counted by the server.
        uncounted: replies for which the server reported no tokens; they are in neither sum.
        retries: number of repeated requests.
        money: by the prices; None without prices.
    """

    answers: int
    prompt_tokens: int
    completion_tokens: int
    uncounted: int
    retries: int
    money: float | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        return asdict(self)


def total_cost(replies: Iterable[Reply], prices: Prices | None = None) -> Cost:
    """Money: (prompt tokens * prompt price + completion tokens * completion price) / 10^6."""
    all_replies = list(replies)
    counted = [reply for reply in all_replies if None not in (reply.prompt_tokens, reply.completion_tokens)]
    prompt = sum(reply.prompt_tokens or 0 for reply in counted)
    completion = sum(reply.completion_tokens or 0 for reply in counted)
    money = None if prices is None else (prompt * prices.prompt + completion * prices.completion) / 1e6
    retries = sum(reply.retries for reply in all_replies)
    return Cost(len(all_replies), prompt, completion, len(all_replies) - len(counted), retries, money)

"""What asking a served model cost: requests, tokens, and money where prices are given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from kasatune.llm_client.request import Reply


@dataclass(frozen=True)
class Prices:
    """Money for a million tokens, in the user's currency.

    Attributes:
        prompt: of what is sent.
        completion: of what comes back.
    """

    prompt: float
    completion: float


@dataclass(frozen=True)
class Cost:
    """What a number of answers cost, whenever they were given.

    Attributes:
        answers: how many there are.
        prompt_tokens: as the server counted them.
        completion_tokens: the same.
        uncounted: answers whose tokens the server did not tell; they are in no sum.
        retries: requests that were sent again.
        money: by the prices; None without.
    """

    answers: int
    prompt_tokens: int
    completion_tokens: int
    uncounted: int
    retries: int
    money: float | None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def add_up(replies: Iterable[Reply], prices: Prices | None = None) -> Cost:
    """Money: (prompt tokens * prompt price + completion tokens * completion price) / 10^6."""
    found = list(replies)
    counted = [reply for reply in found if reply.prompt_tokens is not None and reply.completion_tokens is not None]
    prompt = sum(reply.prompt_tokens or 0 for reply in counted)
    completion = sum(reply.completion_tokens or 0 for reply in counted)
    money = None if prices is None else (prompt * prices.prompt + completion * prices.completion) / 1e6
    return Cost(len(found), prompt, completion, len(found) - len(counted), sum(reply.retries for reply in found), money)

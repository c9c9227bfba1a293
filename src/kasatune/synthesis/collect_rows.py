"""Rows gathered from a teacher until there are enough: each reply checked, copies and near copies left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kasatune.data.readers.conversations import Chat
from kasatune.llm_client import CachedClient, Refusal, Reply
from kasatune.metrics.near_duplicates import NearDuplicates, words
from kasatune.synthesis.recipe import SynthesisRecipe
from kasatune.synthesis.teacher_prompts import Row, rows_of, seed_request, seed_text

_SLACK = 4


@dataclass
class Gathered:
    """What has come together.

    Attributes:
        rows: that are kept, in the order of the requests.
        replies: of the teacher, in that order.
        requests: that were answered or refused.
        left_out: how many rows, or whole replies, for which reason.
    """

    rows: list[Row] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    requests: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def gather(
    recipe: SynthesisRecipe,
    seeds: Sequence[Chat],
    client: CachedClient,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Gathered:
    """As many rows as the recipe wants, or as many as its requests give.

    The result depends on the recipe and the teacher's replies alone: begun again with replies that are known, it goes
    on where it stopped.

    Args:
        recipe: checked.
        seeds: rows to begin from; one at least.
        client: of the teacher.
        progress: is told how many rows there are, of how many.

    Raises:
        InputError: as `CachedClient.ask` has it.
        WorkError: the same.
    """
    found, wanted = Gathered(), recipe.data.count
    filters = _Filters(recipe.filter.similarity, [seed_text(seed) for seed in seeds])
    most = most_requests(recipe)
    while len(found.rows) < wanted and found.requests < most:
        missing = math.ceil((wanted - len(found.rows)) / recipe.data.per_request)
        number = min(recipe.teacher.workers, missing, most - found.requests)
        requests = [seed_request(recipe, seeds, found.requests + index) for index in range(number)]
        for reply in client.ask_all(requests):
            if len(found.rows) == wanted:
                break
            found.requests += 1
            _take(reply, found, filters, wanted)
            progress(len(found.rows), wanted)
    return found


def most_requests(recipe: SynthesisRecipe) -> int:
    """How many requests may be made."""
    return recipe.data.max_requests or _SLACK * math.ceil(recipe.data.count / recipe.data.per_request)


def _take(reply: Reply | Refusal, found: Gathered, filters: _Filters, wanted: int) -> None:
    if isinstance(reply, Refusal):
        found.left_out["replies refused by the server"] += 1
        return
    found.replies.append(reply)
    parsed = rows_of(reply.text)
    if parsed is None:
        cut = reply.finish_reason == "length"
        found.left_out["replies cut off at max_tokens" if cut else "replies without the JSON asked for"] += 1
        return
    rows, broken = parsed
    found.left_out["rows without instruction or output"] += broken
    for row in rows:
        reason = filters.against(row) if len(found.rows) < wanted else "rows beyond the number wanted"
        if reason:
            found.left_out[reason] += 1
        else:
            found.rows.append(row)


class _Filters:
    """Remembers what was kept.

    Args:
        threshold: of ROUGE-L F1.
        seeds: texts that no new row may be like.
    """

    def __init__(self, threshold: float, seeds: Sequence[str]) -> None:
        self._exact = {" ".join(words(text)) or text for text in seeds}
        self._similar = NearDuplicates(threshold)
        for text in seeds:
            self._similar.add(text)

    def against(self, row: Row) -> str | None:
        """Why the row is left out; one that is not is remembered."""
        plain = " ".join(words(row.instruction)) or row.instruction
        if plain in self._exact:
            return "rows whose instruction is there already"
        if self._similar.find(row.instruction) is not None:
            return f"rows too much like another (ROUGE-L of {self._similar.threshold:g} or more)"
        self._exact.add(plain)
        self._similar.add(row.instruction)
        return None

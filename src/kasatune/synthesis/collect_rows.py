"""Collect rows from a teacher model until there are enough: check each reply, drop copies and near copies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from kasatune.data.readers.conversations import Chat
from kasatune.llm_client import CachedClient, ProgressCallback, Refusal, Reply
from kasatune.metrics.near_duplicates import NearDuplicates, words
from kasatune.synthesis.recipe import SynthesisRecipe
from kasatune.synthesis.teacher_prompts import Row, parse_rows, seed_request, seed_text

_REQUESTS_PER_NEEDED = 4  # most requests, relative to the number needed if every row were accepted


@dataclass
class CollectedRows:
    """The rows of a synthesis so far.

    Attributes:
        rows: accepted rows, in the order of the requests.
        replies: replies of the teacher, in the same order.
        requests: number of requests that were answered or refused.
        left_out: number of rows, or of complete replies, that were left out, by reason.
    """

    rows: list[Row] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    requests: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def collect_rows(
    recipe: SynthesisRecipe,
    seeds: Sequence[Chat],
    client: CachedClient,
    progress: ProgressCallback = lambda done, total: None,
) -> CollectedRows:
    """Collect the number of rows that the recipe requests, or as many as its requests yield.

    The result depends only on the recipe and the teacher's replies: started again with cached replies, it resumes where
    it stopped.

    Args:
        recipe: a validated recipe.
        seeds: rows to start from; at least one.
        client: client of the teacher.
        progress: called with the number of rows so far and the number requested.

    Raises:
        InputError: see `CachedClient.ask`.
        WorkError: see `CachedClient.ask`.
    """
    collected, wanted = CollectedRows(), recipe.data.count
    filters = _Filters(recipe.filter.similarity, [seed_text(seed) for seed in seeds])
    limit = max_requests_of(recipe)
    while len(collected.rows) < wanted and collected.requests < limit:
        missing = math.ceil((wanted - len(collected.rows)) / recipe.data.per_request)
        number = min(recipe.teacher.workers, missing, limit - collected.requests)
        requests = [seed_request(recipe, seeds, collected.requests + index) for index in range(number)]
        for reply in client.ask_all(requests):
            if len(collected.rows) == wanted:
                break
            collected.requests += 1
            _take(reply, collected, filters, wanted)
            progress(len(collected.rows), wanted)
    return collected


def max_requests_of(recipe: SynthesisRecipe) -> int:
    """The largest number of requests."""
    return recipe.data.max_requests or _REQUESTS_PER_NEEDED * math.ceil(recipe.data.count / recipe.data.per_request)


def _take(reply: Reply | Refusal, collected: CollectedRows, filters: _Filters, wanted: int) -> None:
    if isinstance(reply, Refusal):
        collected.left_out["replies refused by the server"] += 1
        return
    collected.replies.append(reply)
    parsed = parse_rows(reply.text)
    if parsed is None:
        cut = reply.finish_reason == "length"
        collected.left_out["replies cut off at max_tokens" if cut else "replies without the requested JSON"] += 1
        return
    rows, broken = parsed
    collected.left_out["rows without instruction or output"] += broken
    for row in rows:
        reason = filters.reject(row) if len(collected.rows) < wanted else "rows beyond the number requested"
        if reason:
            collected.left_out[reason] += 1
        else:
            collected.rows.append(row)


class _Filters:
    """Rejects copies and near copies of seeds and accepted rows.

    Args:
        threshold: ROUGE-L F1 from which on two texts are near copies.
        seeds: texts that no new row may copy.
    """

    def __init__(self, threshold: float, seeds: Sequence[str]) -> None:
        self._exact = {" ".join(words(text)) or text for text in seeds}
        self._similar = NearDuplicates(threshold)
        for text in seeds:
            self._similar.add(text)

    def reject(self, row: Row) -> str | None:
        """The reason to leave the row out, or None; an accepted row is added to the filter."""
        plain = " ".join(words(row.instruction)) or row.instruction
        if plain in self._exact:
            return "rows whose instruction occurred before"
        if self._similar.find(row.instruction) is not None:
            return f"rows too similar to another (ROUGE-L of {self._similar.threshold:g} or more)"
        self._exact.add(plain)
        self._similar.add(row.instruction)
        return None

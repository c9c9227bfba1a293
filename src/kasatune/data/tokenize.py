"""Text as the model takes it: tokenized rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from kasatune.data.token_cache import Rows, remembered


@dataclass(frozen=True)
class Examples(Dataset):
    """Tokenized rows.

    Attributes:
        rows: for each row `input_ids` and what else the tokenizer gives, and `labels` where they are known.
        truncated: indices of the rows that were cut to the longest length allowed.
    """

    rows: list[dict[str, Any]]
    truncated: frozenset[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    @property
    def labels(self) -> list[Any]:
        """The label of each row."""
        return [row["labels"] for row in self.rows]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    first: Sequence[str],
    second: Sequence[str] | None,
    labels: Sequence[int] | Sequence[float] | None,
    max_length: int,
) -> Examples:
    """Tokenize texts, or pairs of texts, to at most `max_length` tokens; nothing is padded yet.

    Args:
        tokenizer: of the model.
        first: texts.
        second: their partners, or None.
        labels: numbers, one for each text, or None where they are not known.
        max_length: longer rows are cut, the longer text of a pair first.
    """
    if not first:
        return Examples([], frozenset())
    rows, long = remembered(
        lambda: _tokenize(tokenizer, first, second, max_length), tokenizer, first, second, max_length
    )
    if labels is not None:
        rows = [{**row, "labels": label} for row, label in zip(rows, labels, strict=True)]
    return Examples(list(rows), frozenset(long))


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, first: Sequence[str], second: Sequence[str] | None, max_length: int
) -> Rows:
    whole = tokenizer(text=list(first), text_pair=None if second is None else list(second), verbose=False)
    rows = [{key: values[index] for key, values in whole.items()} for index in range(len(first))]
    long = [index for index, row in enumerate(rows) if len(row["input_ids"]) > max_length]
    for index in long:
        pair = None if second is None else second[index]
        rows[index] = dict(tokenizer(text=first[index], text_pair=pair, truncation=True, max_length=max_length))
    return rows, long

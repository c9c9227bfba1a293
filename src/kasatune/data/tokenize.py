"""Tokenize text, with a small cache so that the runs of a comparison tokenize their data once per process."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from kasatune.errors import ModelError

Tokenized = tuple[list[dict[str, Any]], list[int]]
"""Rows with the keys that a tokenizer gives, and the indices of those that were truncated."""

_MAX_CACHED = 4  # training and validation rows of two tasks
_cache: OrderedDict[str, Tokenized] = OrderedDict()


@dataclass(frozen=True)
class Examples(Dataset):
    """Tokenized rows.

    Attributes:
        rows: for each row `input_ids` and the tokenizer's other keys, and `labels` if they are known.
        truncated: indices of the rows that were cut to the longest length allowed.
        parts: the part of a mixture that each row belongs to; empty for other tasks.
    """

    rows: list[dict[str, Any]]
    truncated: frozenset[int]
    parts: Sequence[str] = ()

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
    """Tokenize texts, or pairs of texts, to at most `max_length` tokens, without padding.

    The last few data sets are cached; the rows of the result must not be changed in place.

    Args:
        tokenizer: tokenizer of the model.
        first: texts.
        second: second texts of pairs, or None.
        labels: one number for each text, or None if they are not known.
        max_length: longer rows are truncated, the longer text of a pair first.
    """
    if not first:
        return Examples([], frozenset())
    rows, truncated = _tokenize_cached(tokenizer, first, second, max_length)
    if labels is not None:
        rows = [{**row, "labels": label} for row, label in zip(rows, labels, strict=True)]
    return Examples(list(rows), frozenset(truncated))


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options: Any) -> Any:
    """The result of calling a tokenizer for several texts, without its warnings about long ones.

    Args:
        tokenizer: tokenizer of the model.
        texts: at least one.
        options: further arguments of the call, such as `text_pair` and `add_special_tokens`.

    Raises:
        ModelError: the tokenizer has no token for a part of a text, and none that stands for unknown parts.
    """
    try:
        columns: Any = tokenizer(list(texts), verbose=False, **options)
    except Exception as fault:  # tokenizers raises Exception itself
        raise _untokenizable(tokenizer, str(fault)) from fault
    if not tokenizer.is_fast and any(None in row for row in columns["input_ids"]):
        raise _untokenizable(tokenizer, "it has no token for a part of a text, and no unknown token")
    return columns


def _untokenizable(tokenizer: PreTrainedTokenizerBase, reason: str) -> ModelError:
    return ModelError(
        f"model.name: the tokenizer of {tokenizer.name_or_path} cannot read a text: {reason}; give the tokenizer that"
        " belongs to the model, or add an unknown token to its tokenizer_config.json"
    )


def _tokenize_cached(
    tokenizer: PreTrainedTokenizerBase, first: Sequence[str], second: Sequence[str] | None, max_length: int
) -> Tokenized:
    """The result of `_tokenize`, from the cache for an equal tokenizer and equal texts.

    Tokenizers written in Python are not cached: the state that decides their output cannot be read from outside.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _tokenize(tokenizer, first, second, max_length)
    digest = hashlib.sha256(f"{type(tokenizer).__qualname__} {tokenizer.truncation_side} {max_length}".encode())
    digest.update(backend.to_str().encode("utf-8", "surrogatepass"))
    for texts in (first, second or ()):
        for text in (str(len(texts)), *texts):
            digest.update(f"{len(text)} ".encode() + text.encode("utf-8", "surrogatepass"))
    key = digest.hexdigest()
    result = _cache.pop(key, None) or _tokenize(tokenizer, first, second, max_length)
    _cache[key] = result
    while len(_cache) > _MAX_CACHED:
        _cache.popitem(last=False)
    return result


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, first: Sequence[str], second: Sequence[str] | None, max_length: int
) -> Tokenized:
    columns = tokenize(tokenizer, first, text_pair=None if second is None else list(second))
    rows = [{key: values[index] for key, values in columns.items()} for index in range(len(first))]
    truncated = [index for index, row in enumerate(rows) if len(row["input_ids"]) > max_length]
    for index in truncated:
        pair = None if second is None else second[index]
        rows[index] = dict(tokenizer(text=first[index], text_pair=pair, truncation=True, max_length=max_length))
    return rows, truncated

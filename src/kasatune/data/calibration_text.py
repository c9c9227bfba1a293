"""Bundled calibration text: documentation strings of packages that are installed with kasatune, as token ids."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kasatune.data.readers.docstrings import docstrings

PACKAGES = ("scipy", "transformers")
"""Not Python's standard library: forgetting is measured on its documentation strings."""

TEXTS = 64
_ROWS_AT_ONCE = 8
_LEAST_WORDS, _MOST_WORDS, _MAX_PER_FILE = 60, 200, 4
_NOTHING = re.compile(r"(?!)")


@lru_cache(maxsize=4)
def bundled_texts(number: int) -> tuple[str, ...]:
    """The first `number` texts, from each package in turn, in a fixed random order.

    They are equal wherever the same versions of the packages are installed.
    """
    share = -(-number // len(PACKAGES))
    columns = [
        [string.text for string in islice(docstrings(name, _NOTHING, _LEAST_WORDS, _MOST_WORDS, _MAX_PER_FILE), share)]
        for name in PACKAGES
    ]
    return tuple(text for row in zip(*columns, strict=False) for text in row)[:number]


def bundled_batches(
    tokenizer: PreTrainedTokenizerBase, length: int, number: int = TEXTS
) -> Iterator[dict[str, Tensor]]:
    """The texts in batches of `input_ids` and `attention_mask` (rows, length), cut and padded to `length` tokens.

    Padding is left out by the mask, so that any token will do where the tokenizer has none for it.
    """
    texts = bundled_texts(number)
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        rows = [
            tokenizer(text, truncation=True, max_length=length)["input_ids"]
            for text in texts[start : start + _ROWS_AT_ONCE]
        ]
        width = max(map(len, rows))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        padding: Any = tokenizer.pad_token_id
        if padding is not None:
            ids[mask == 0] = padding
        yield {"input_ids": ids, "attention_mask": mask}

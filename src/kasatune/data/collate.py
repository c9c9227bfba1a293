"""Batches of tokenized rows: padding and the collators of labelled text and of causal language models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from kasatune.data.prompt_completion import IGNORED
from kasatune.data.tasks.task_info import RowFormat

Collator = Callable[[list[dict[str, Any]]], Mapping[str, Tensor]]
"""Makes a batch of tokenized rows."""

_MASK = "attention_mask"


def collator_for(rows: RowFormat, tokenizer: PreTrainedTokenizerBase) -> Collator:
    """The collator of a task's rows, see `TaskInfo.rows`; that of pairs is `tokenize_pairs.PairCollator`."""
    return LabelledCollator(tokenizer) if rows == "labelled" else CausalCollator(tokenizer)


def pad(rows: Sequence[Sequence[int]], fill: int, side: Literal["left", "right"] = "right") -> Tensor:
    """An int64 tensor (rows, longest) of `rows`, with `fill` before or after the shorter ones."""
    longest = max(map(len, rows))
    padded = np.full((len(rows), longest), fill, dtype=np.int64)
    for target, values in zip(padded, rows, strict=True):
        start = longest - len(values) if side == "left" else 0
        target[start : start + len(values)] = values
    return torch.from_numpy(padded)


class LabelledCollator:
    """Pad labelled rows to the longest of a batch, with the result of `DataCollatorWithPadding` but in less time.

    Rows with keys other than token ids, attention mask, token types and a label are left to that class.

    Args:
        tokenizer: its padding values and padding side are used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._other = DataCollatorWithPadding(tokenizer, padding="longest")
        self._side: Literal["left", "right"] = "left" if tokenizer.padding_side == "left" else "right"
        self._fill = {"input_ids": tokenizer.pad_token_id, _MASK: 0, "token_type_ids": tokenizer.pad_token_type_id}

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Mapping[str, Tensor]:
        """A batch; `labels` is int64 for label numbers and float32 for numbers."""
        keys = [key for key in rows[0] if key != "labels"]
        if _MASK not in keys or any(self._fill.get(key) is None for key in keys):
            return self._other(list(rows))
        batch = {key: pad([row[key] for row in rows], self._fill[key], self._side) for key in keys}
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch


class CausalCollator:
    """Pad the rows of a causal language model on the right, to the longest of a batch.

    Args:
        tokenizer: gives the padding token, which the attention mask hides; its label is `IGNORED`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._fill = {"input_ids": tokenizer.pad_token_id, _MASK: 0, "labels": IGNORED}

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A tensor (rows, tokens) for each key of the rows."""
        return {key: pad([row[key] for row in rows], self._fill.get(key, 0)) for key in rows[0]}

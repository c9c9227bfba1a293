"""Batches of tokenized rows, padded to the longest row of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

_MASK = "attention_mask"


class PaddedBatch:
    """Rows to tensors (rows, longest), as `DataCollatorWithPadding` makes them, without its passes through lists.

    Rows with something else than token ids, their mask, their types and a label are left to that class.

    Args:
        tokenizer: says what is padded with what, and on which side.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._other = DataCollatorWithPadding(tokenizer, padding="longest")
        self._left = tokenizer.padding_side == "left"
        self._fill = {"input_ids": tokenizer.pad_token_id, _MASK: 0, "token_type_ids": tokenizer.pad_token_type_id}

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Mapping[str, Tensor]:
        """A batch; `labels` is int64 for label numbers and float32 for numbers."""
        keys = [key for key in rows[0] if key != "labels"]
        if _MASK not in keys or any(self._fill.get(key) is None for key in keys):
            return self._other(list(rows))
        batch = {key: torch.from_numpy(self._padded([row[key] for row in rows], self._fill[key])) for key in keys}
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch

    def _padded(self, lists: list[list[int]], fill: int) -> np.ndarray:
        longest = max(map(len, lists))
        found = np.full((len(lists), longest), fill, dtype=np.int64)
        for row, values in zip(found, lists, strict=True):
            row[longest - len(values) if self._left else 0 :][: len(values)] = values
        return found

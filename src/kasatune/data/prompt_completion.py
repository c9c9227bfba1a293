"""Prompts and completions as a causal language model is trained on them, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kasatune.data.tokenize import Examples

IGNORED = -100
"""The label of a token that is read and not learnt."""

LossOn = Literal["completion", "everything"]


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    max_length: int,
    loss_on: LossOn = "completion",
) -> Examples:
    """Token rows: prompt, completion, end-of-text token, with a label for each token that is learnt.

    Prompt and completion are tokenized apart, so that a model reads exactly the tokens in training that it is given
    when it is asked. A row that is longer than `max_length` loses the end of its completion, without the end-of-text
    token then; where the prompt leaves less than half of the length, the prompt loses its beginning too.

    Args:
        tokenizer: of the model, with an end-of-text token.
        prompts: texts.
        completions: what follows each.
        max_length: tokens of the longest row; at least 2.
        loss_on: which tokens are learnt: those of the completion with its end, or every one.
    """
    rows, long = [], []
    asked, written = prompt_tokens(tokenizer, prompts), _tokens(tokenizer, completions)
    for index, (prompt, completion) in enumerate(zip(asked, written, strict=True)):
        completion = [*completion, tokenizer.eos_token_id]
        if len(prompt) + len(completion) > max_length:
            long.append(index)
            prompt = prompt[-(max_length - min(len(completion), max_length // 2)) :]
            completion = completion[: max_length - len(prompt)]
        tokens = [*prompt, *completion]
        labels = tokens if loss_on == "everything" else [IGNORED] * len(prompt) + completion
        rows.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": list(labels)})
    return Examples(rows, frozenset(long))


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str] | Sequence[list[int]]) -> list[list[int]]:
    """The tokens of each prompt, with the beginning that the tokenizer puts before a text and without an end.

    Prompts that are tokens already stay what they are.
    """
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if not texts:
        return [list(row) for row in prompts if not isinstance(row, str)]
    found: list[list[int]] = [list(row) for row in tokenizer(texts, verbose=False)["input_ids"]]
    return [row[:-1] if len(row) > 1 and row[-1] == tokenizer.eos_token_id else row for row in found]


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return list(tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]) if texts else []


class TextCollator:
    """Pads the rows of a batch on the right to the longest of them.

    Args:
        tokenizer: gives the padding token, which the attention mask hides; its label is ignored.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._padding = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A tensor (rows, tokens) for each key of the rows."""
        longest = max(len(row["input_ids"]) for row in rows)
        batch = {}
        for key in rows[0]:
            fill = self._padding.get(key, 0)
            batch[key] = torch.tensor([[*row[key], *[fill] * (longest - len(row[key]))] for row in rows])
        return batch

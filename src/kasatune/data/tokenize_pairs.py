"""Tokenize pairs of a chosen and a rejected answer, and make batches of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kasatune.data.chat_template import split_last_answer
from kasatune.data.collate import pad
from kasatune.data.prompt_completion import IGNORED
from kasatune.data.readers.answer_pairs import AnswerPair
from kasatune.data.tokenize import Examples

PROMPT, CHOSEN, REJECTED = "prompt_ids", "chosen_ids", "rejected_ids"
REFERENCE_CHOSEN, REFERENCE_REJECTED = "ref_chosen_logps", "ref_rejected_logps"


def encode_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[AnswerPair], max_length: int) -> Examples:
    """Rows with the tokens of a prompt and of the two answers, `prompt_ids`, `chosen_ids` and `rejected_ids`.

    The prompt is the same for both answers, and tokenized like the rows of `encode_chats`. If the prompt leaves less
    than half of `max_length` for the longer answer, it loses its beginning; answers that are still too long lose their
    end.

    Raises:
        ModelError: the chat template rejects a conversation.
    """
    chosen = split_last_answer(tokenizer, [(*pair.prompt, ("assistant", pair.chosen)) for pair in pairs])
    rejected = split_last_answer(tokenizer, [(*pair.prompt, ("assistant", pair.rejected)) for pair in pairs])
    rows, truncated = [], []
    for index, ((prompt, better), (_, worse)) in enumerate(zip(chosen, rejected, strict=True)):
        longest = max(len(better), len(worse))
        if len(prompt) + longest > max_length:
            truncated.append(index)
            prompt = prompt[-(max_length - min(longest, max_length // 2)) :]
        room = max_length - len(prompt)
        rows.append({PROMPT: prompt, CHOSEN: better[:room], REJECTED: worse[:room]})
    return Examples(rows, frozenset(truncated))


def encode_scored_answers(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str], max_length: int
) -> Examples:
    """Rows of one prompt with one answer, tokenized like those of `encode_pairs`, as input of a reward model."""
    pairs = [AnswerPair((("user", prompt),), answer, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    rows = chosen_rows(encode_pairs(tokenizer, pairs, max_length))
    return Examples([{key: row[key] for key in ("input_ids", "attention_mask")} for row in rows.rows], rows.truncated)


def all_tokens(row: Mapping[str, Any]) -> list[int]:
    """Every token of a row of any form."""
    return row["input_ids"] if "input_ids" in row else [*row[PROMPT], *row[CHOSEN], *row[REJECTED]]


def chosen_rows(examples: Examples) -> Examples:
    """The prompts with their chosen answers as rows of a language model, as of `encode_chats`."""
    rows = [_causal_row(row, CHOSEN) for row in examples.rows]
    return Examples(rows, examples.truncated)


def pair_lengths(examples: Examples) -> list[int]:
    """The number of tokens of each row with its longer answer."""
    return [len(row[PROMPT]) + max(len(row[CHOSEN]), len(row[REJECTED])) for row in examples.rows]


def with_reference(examples: Examples, chosen: Sequence[float], rejected: Sequence[float]) -> Examples:
    """Copies of the rows with the log-probabilities of their answers under the reference model."""
    rows = [
        {**row, REFERENCE_CHOSEN: better, REFERENCE_REJECTED: worse}
        for row, better, worse in zip(examples.rows, chosen, rejected, strict=True)
    ]
    return Examples(rows, examples.truncated)


def pairs_sha256(examples: Examples) -> str:
    """SHA-256 of the tokens of the rows, in order."""
    digest = hashlib.sha256()
    for row in examples.rows:
        digest.update(json.dumps([row[PROMPT], row[CHOSEN], row[REJECTED]]).encode())
    return digest.hexdigest()


class PairCollator:
    """Batches of 2 n rows for n pairs: the chosen answers after their prompts, then the rejected ones, padded right.

    Args:
        tokenizer: gives the padding token, which the attention mask hides.
        regression: `labels` are 1.0 for a chosen answer and 0.0 for a rejected one, (2 n,), instead of the tokens of
            the answers, (2 n, tokens), with -100 elsewhere.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, regression: bool) -> None:
        self._fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}
        self._regression = regression

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A tensor (2 n, tokens) for each key, see the class for `labels`; (n, tokens) for rows of one answer."""
        if "input_ids" in rows[0]:
            return {key: pad([row[key] for row in rows], self._fill[key]) for key in rows[0]}
        causal = [_causal_row(row, answer) for answer in (CHOSEN, REJECTED) for row in rows]
        batch = {key: pad([row[key] for row in causal], fill) for key, fill in self._fill.items()}
        if self._regression:
            batch["labels"] = torch.tensor([1.0] * len(rows) + [0.0] * len(rows))
        return batch


def _causal_row(row: Mapping[str, Any], answer: str) -> dict[str, list[int]]:
    tokens = [*row[PROMPT], *row[answer]]
    labels = [*[IGNORED] * len(row[PROMPT]), *row[answer]]
    return {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels}

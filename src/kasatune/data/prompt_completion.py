"""Tokenize prompts and completions for a causal language model, with labels for the tokens that are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

from kasatune.data.tokenize import Examples, tokenize

IGNORED = -100
"""Label of a token that is read but not trained on."""

LossOn = Literal["completion", "last-answer", "everything"]


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    max_length: int,
    loss_on: LossOn = "completion",
) -> Examples:
    """Token rows: prompt, completion, end-of-text token, with a label for each token that is trained on.

    Prompt and completion are tokenized separately, so that the model reads the same prompt tokens in training as in
    generation. A row that is longer than `max_length` loses the end of its completion, including the end-of-text token;
    if the prompt leaves less than half of the length, the prompt loses its beginning too.

    Args:
        tokenizer: tokenizer of the model, with an end-of-text token.
        prompts: one text a row.
        completions: the completion of each prompt.
        max_length: tokens of the longest row; at least 2.
        loss_on: the tokens to train on: those of the completion with its end, or all ("everything").
    """
    rows, truncated = [], []
    pairs = zip(prompt_tokens(tokenizer, prompts), _tokens(tokenizer, completions), strict=True)
    for index, (prompt, completion) in enumerate(pairs):
        completion = [*completion, tokenizer.eos_token_id]
        if len(prompt) + len(completion) > max_length:
            truncated.append(index)
            prompt = prompt[-(max_length - min(len(completion), max_length // 2)) :]
            completion = completion[: max_length - len(prompt)]
        tokens = [*prompt, *completion]
        labels = tokens if loss_on == "everything" else [IGNORED] * len(prompt) + completion
        rows.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": list(labels)})
    return Examples(rows, frozenset(truncated))


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str] | Sequence[list[int]]) -> list[list[int]]:
    """The tokens of each prompt, with the special tokens that the tokenizer puts before a text, but none at the end.

    Prompts that are already tokens are returned unchanged.
    """
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if not texts:
        return [list(row) for row in prompts if not isinstance(row, str)]
    rows: list[list[int]] = [list(row) for row in tokenize(tokenizer, texts)["input_ids"]]
    return [row[:-1] if len(row) > 1 and row[-1] == tokenizer.eos_token_id else row for row in rows]


def ends_prompts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts its EOS token after every text, which `prompt_tokens` removes."""
    return list(tokenize(tokenizer, [""])["input_ids"][0])[-1:] == [tokenizer.eos_token_id]


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return list(tokenize(tokenizer, texts, add_special_tokens=False)["input_ids"]) if texts else []

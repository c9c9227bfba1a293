"""Save a tokenizer with its chat template, and the tokens that end a text, beside the trained weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from kasatune.io.atomic import write_json

GENERATION_CONFIG = "generation_config.json"


def save_tokenizer(
    tokenizer: PreTrainedTokenizerBase, model: nn.Module, end_tokens: Sequence[int], folder: Path
) -> None:
    """Write the tokenizer, and the model's generation_config.json with `end_tokens` as its EOS tokens.

    A server that loads them asks and stops as the training did.

    Args:
        tokenizer: tokenizer of the run, with the chat template that it was trained with.
        model: the base model; its own settings of generation are kept.
        end_tokens: the tokens that end a text.
        folder: the folder of an adapter or of a complete checkpoint.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # or tokenizer.json would hold how the latest batch was padded and cut
        backend.no_padding()
        backend.no_truncation()
    tokenizer.save_pretrained(str(folder))
    own: Any = getattr(model, "generation_config", None)
    settings = {} if own is None else own.to_diff_dict()
    ends = list(end_tokens)
    settings |= {"eos_token_id": ends[0] if len(ends) == 1 else ends, "pad_token_id": tokenizer.pad_token_id}
    write_json(folder / GENERATION_CONFIG, settings)

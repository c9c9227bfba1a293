from __future__ import annotations

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

WORDS = ["<end>", "good", "fine", "nice", "great", "bad", "poor", "awful", "sad"]


def make_gpt(folder: Path) -> Path:
    """A random GPT-2, whose weights are stored (in, out), with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(5)
    config = GPT2Config(vocab_size=len(WORDS), n_positions=64, n_embd=32, n_layer=2, n_head=2)
    GPT2Model(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    return folder

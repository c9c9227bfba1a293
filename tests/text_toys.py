"""Small random language models with a tokenizer of words, and a task of copying that they can learn."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kasatune.recipes.schema import Recipe

WORDS = ("red", "blue", "green", "one", "two", "three", "pub", "cafe")
MARKS = ("say", ":", "#", "###", "Context", "Completion")


def save_tokenizer(folder: Path, *, padding: bool = False) -> PreTrainedTokenizerFast:
    """Words and marks, a beginning-of-text and an end-of-text token; no padding token unless asked for."""
    words = ["<s>", "</s>", "<unk>", *(["<pad>"] if padding else []), *WORDS, *MARKS]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        **({"pad_token": "<pad>"} if padding else {}),
    )
    fast.save_pretrained(folder)
    return fast


def make_llama(folder: Path, **changes: Any) -> Path:
    """A random Llama without a padding token, with its tokenizer."""
    tokenizer = save_tokenizer(folder)
    torch.manual_seed(5)
    options = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
    }
    LlamaForCausalLM(LlamaConfig(**{**options, **changes})).save_pretrained(folder)
    return folder


def make_gpt2(folder: Path) -> Path:
    """A random GPT-2, whose layers are Conv1D, with the same tokenizer."""
    tokenizer = save_tokenizer(folder)
    torch.manual_seed(5)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.2,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def lines(number: int, seed: int) -> list[dict[str, str]]:
    """Prompts of one to six words, each to be answered with its last two."""
    draw = random.Random(seed)
    found = []
    for _ in range(number):
        words = [draw.choice(WORDS) for _ in range(draw.randint(1, 6))]
        found.append({"question": f"say {' '.join(words)} :", "answer": " ".join(words[-2:])})
    return found


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    """One object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_text_recipe(
    model: Path | str,
    folder: Path,
    *,
    method: dict[str, Any] | None = None,
    task: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
    train: int = 24,
    validation: int = 9,
    **training: Any,
) -> Recipe:
    """A recipe of the task text-generation on toy data written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return Recipe.model_validate(
        {
            "model": {"name": str(model)},
            "task": {
                "name": "text-generation",
                "train": str(write_jsonl(folder / "train.jsonl", lines(train, seed=1))),
                "validation": str(write_jsonl(folder / "validation.jsonl", lines(validation, seed=2))),
                "prompt": "question",
                "completion": "answer",
                "max_length": 24,
                **(task or {}),
            },
            "method": {"name": "kasa", "r": 2, "alpha": 4, **(method or {})},
            "training": {
                "epochs": 1,
                "batch_size": 8,
                "eval_batch_size": 4,
                "learning_rate": 1e-2,
                "device": "cpu",
                **training,
            },
            "generation": {"max_new_tokens": 5, **(generation or {})},
            "output": "unused",
        }
    )

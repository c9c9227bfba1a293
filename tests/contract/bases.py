"""The base models of the contract tests: tiny ones, and the shapes of real ones without weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

HEAD = {"bert": "classifier", "gpt2": "score", "llama": "score", "roberta": "classifier", "deberta-v2": "classifier"}
TINY = ("bert", "gpt2", "llama")
_VOCABULARY = 40
_SHAPE: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}


def tiny_config(base: str) -> PreTrainedConfig:
    """The configuration of a tiny model without dropout, with weights large enough for an update to show."""
    if base == "bert":
        return BertConfig(**_SHAPE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    if base == "gpt2":
        return GPT2Config(
            vocab_size=_VOCABULARY,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_inner=24,
            n_positions=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            resid_pdrop=0.0,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            initializer_range=0.3,
        )
    return LlamaConfig(**_SHAPE, num_key_value_heads=2, bos_token_id=1, eos_token_id=2)


def tiny_model(base: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A tiny model with a head of three labels, the same at every call, in evaluation mode."""
    torch.manual_seed(11)
    config = tiny_config(base)
    config.num_labels = 3
    return AutoModelForSequenceClassification.from_config(config).to(dtype).eval()


def tiny_rows() -> list[dict[str, Any]]:
    """Eight tokenized rows of different lengths, longest first so that every pair of them shares its padding."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for index in range(8):
        length = 7 - index // 2
        tokens = torch.randint(3, _VOCABULARY, (length,), generator=generator).tolist()
        rows.append({"input_ids": tokens, "attention_mask": [1] * length, "labels": index % 3})
    return rows


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch, padded to its longest row with zeros."""
    width = max(len(row["input_ids"]) for row in rows)
    batch = {
        key: torch.tensor([row[key] + [0] * (width - len(row[key])) for row in rows])
        for key in ("input_ids", "attention_mask")
    }
    if "labels" in rows[0]:
        batch["labels"] = torch.tensor([row["labels"] for row in rows])
    return batch


REAL: dict[str, PreTrainedConfig] = {
    "roberta-base": RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5
    ),
    "roberta-large": RobertaConfig(
        vocab_size=50265,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=1,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    ),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16, pad_token_id=50256),
    "llama2-7b": LlamaConfig(pad_token_id=0),
    "llama3-8b": LlamaConfig(vocab_size=128256, intermediate_size=14336, num_key_value_heads=8, pad_token_id=0),
    "deberta-v3-base": DebertaV2Config(
        vocab_size=128100,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=512,
        type_vocab_size=0,
        relative_attention=True,
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
    ),
}


def on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration on the meta device, without storage."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)

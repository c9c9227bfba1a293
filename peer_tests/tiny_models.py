"""Tiny transformers models for the hub names in PEFT's tests, built from configurations without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedConfig

_SIZES = {"vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_LARGE = {"initializer_range": 0.2}
"""With the usual 0.02, outputs of so small a model hardly depend on its adapters."""
_BERT = {**_SIZES, **_LARGE, "intermediate_size": 64, "max_position_embeddings": 128}
_LLAMA = {**_BERT, "num_key_value_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GPT2 = {"vocab_size": 1024, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, **_LARGE}
_END = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _llama4() -> PreTrainedConfig:
    return transformers.Llama4TextConfig(
        **{**_LLAMA, "num_key_value_heads": 2},
        head_dim=8,
        intermediate_size_mlp=64,
        num_local_experts=2,
        num_experts_per_tok=1,
        interleave_moe_layer_step=1,
        attention_chunk_size=64,
    )


def _gpt_oss() -> PreTrainedConfig:
    return transformers.GptOssConfig(
        **{**_LLAMA, "num_key_value_heads": 2}, head_dim=8, num_local_experts=4, num_experts_per_tok=2
    )


def _opt() -> PreTrainedConfig:
    return transformers.OPTConfig(
        **_SIZES, word_embed_proj_dim=32, ffn_dim=64, max_position_embeddings=128, init_std=0.2
    )


def _gpt2() -> PreTrainedConfig:
    return transformers.GPT2Config(**_GPT2, **_END)


def _gptj() -> PreTrainedConfig:
    return transformers.GPTJConfig(**_GPT2, **_END, rotary_dim=4)


def _llama() -> PreTrainedConfig:
    return transformers.LlamaConfig(**_LLAMA)


def _mistral() -> PreTrainedConfig:
    return transformers.MistralConfig(**_LLAMA)


def _qwen2() -> PreTrainedConfig:
    return transformers.Qwen2Config(**_LLAMA)


def _gemma3() -> PreTrainedConfig:
    return transformers.Gemma3TextConfig(**_LLAMA, head_dim=8)


def _t5() -> PreTrainedConfig:
    sizes = {"vocab_size": 1024, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return transformers.T5Config(**sizes, decoder_start_token_id=0, initializer_factor=0.5)


def _bart() -> PreTrainedConfig:
    sides = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in _BART_SIDE.items()}
    return transformers.BartConfig(vocab_size=1024, d_model=32, max_position_embeddings=128, init_std=0.2, **sides)


_BART_SIDE = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}


def _bert() -> PreTrainedConfig:
    return transformers.BertConfig(**_BERT)


def _roberta() -> PreTrainedConfig:
    return transformers.RobertaConfig(**_BERT)


def _deberta() -> PreTrainedConfig:
    return transformers.DebertaConfig(**_BERT, pos_att_type=["c2p", "p2c"], relative_attention=True)


def _deberta_v2() -> PreTrainedConfig:
    return transformers.DebertaV2Config(**_BERT, pos_att_type=["c2p", "p2c"], relative_attention=True)


MODELS: dict[str, tuple[str, Callable[[], PreTrainedConfig]]] = {
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("AutoModelForCausalLM", _gemma3),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("AutoModelForCausalLM", _mistral),
    "hf-internal-testing/tiny-random-gpt2": ("AutoModelForCausalLM", _gpt2),
    "peft-internal-testing/opt-125m": ("AutoModelForCausalLM", _opt),
    "peft-internal-testing/tiny-dummy-qwen2": ("AutoModelForCausalLM", _qwen2),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": ("AutoModelForSeq2SeqLM", _bart),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": ("AutoModelForSequenceClassification", _bert),
    "peft-internal-testing/tiny-random-BertModel": ("AutoModel", _bert),
    "peft-internal-testing/tiny-random-DebertaModel": ("AutoModel", _deberta),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("AutoModel", _deberta_v2),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("AutoModelForCausalLM", _gpt2),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("AutoModelForCausalLM", _gptj),
    "peft-internal-testing/tiny-random-LlamaForCausalLM": ("AutoModelForCausalLM", _llama),
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("AutoModelForCausalLM", _opt),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (
        "AutoModelForSequenceClassification",
        _roberta,
    ),
    "peft-internal-testing/tiny-random-RobertaModel": ("AutoModel", _roberta),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration": ("AutoModelForSeq2SeqLM", _t5),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": ("AutoModelForSeq2SeqLM", _t5),
    "peft-internal-testing/tiny-random-gpt2": ("AutoModelForCausalLM", _gpt2),
    "trl-internal-testing/tiny-GptOssForCausalLM": ("AutoModelForCausalLM", _gpt_oss),
    "trl-internal-testing/tiny-Llama4ForCausalLM": ("AutoModelForCausalLM", _llama4),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": ("AutoModelForSequenceClassification", _llama),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("AutoModelForCausalLM", _llama),
}
"""Name on the hub: the class of transformers that makes the model, and its configuration."""


def write_models(folder: Path) -> None:
    """Write every model of `MODELS` below `folder`, where its name on the hub is its relative path.

    transformers prefers an existing folder to the hub, so tests that run in `folder` load these.
    """
    for name, (kind, config) in MODELS.items():
        target = folder / name
        if (target / "config.json").is_file():
            continue
        torch.manual_seed(0)
        getattr(transformers, kind).from_config(config()).save_pretrained(target)

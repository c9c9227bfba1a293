"""A small model of every architecture that bottleneck adapters support."""

from __future__ import annotations

import functools

import torch
import transformers as tf
from transformers import PreTrainedModel

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
BLOCKS, WIDTH = 3, 16
_ENCODER = {
    "vocab_size": 50,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "pad_token_id": 0,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}
_GPT2 = {"vocab_size": 50, "n_embd": WIDTH, "n_layer": BLOCKS, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}
_OPT = {**_ENCODER, "ffn_dim": 24, "word_embed_proj_dim": WIDTH, "bos_token_id": 1, "eos_token_id": 2}

_MAKE = {
    "bert": lambda: tf.BertForSequenceClassification(tf.BertConfig(**_ENCODER)),
    "roberta": lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**_ENCODER)),
    "electra": lambda: tf.ElectraForSequenceClassification(tf.ElectraConfig(**_ENCODER, embedding_size=8)),
    "deberta": lambda: tf.DebertaForSequenceClassification(tf.DebertaConfig(**_ENCODER)),
    "deberta-v2": lambda: tf.DebertaV2ForSequenceClassification(tf.DebertaV2Config(**_ENCODER)),
    "distilbert": lambda: tf.DistilBertForSequenceClassification(
        tf.DistilBertConfig(vocab_size=50, dim=WIDTH, n_layers=BLOCKS, n_heads=2, hidden_dim=24)
    ),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**_GPT2)),
    "opt": lambda: tf.OPTForCausalLM(tf.OPTConfig(**_OPT)),
    "opt-post-norm": lambda: tf.OPTForCausalLM(tf.OPTConfig(**_OPT, do_layer_norm_before=False)),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_DECODER)),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**_DECODER)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**_DECODER)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_DECODER, head_dim=8)),
    "gemma": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**_DECODER, head_dim=8)),
}
ARCHITECTURES = tuple(_MAKE)


@functools.cache
def _made(architecture: str) -> PreTrainedModel:
    tf.set_seed(0)
    return _MAKE[architecture]().eval()


def make(architecture: str) -> PreTrainedModel:
    """A fresh copy, in evaluation mode, the same weights at each call."""
    import copy

    return copy.deepcopy(_made(architecture))

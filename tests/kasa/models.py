"""Tiny models with random weights, made in milliseconds, the same at every call."""

from __future__ import annotations

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    SqueezeBertConfig,
    SqueezeBertForSequenceClassification,
)


def bert(labels: int = 2, dtype: torch.dtype = torch.float32) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=80,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
        num_labels=labels,
    )
    return BertForSequenceClassification(config).to(dtype).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=97,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=40,
        initializer_range=0.2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def squeezebert() -> SqueezeBertForSequenceClassification:
    """A text model whose linear layers are convolutions of kernel 1."""
    torch.manual_seed(0)
    groups = {f"{name}_groups": 1 for name in ("q", "k", "v", "post_attention", "intermediate", "output")}
    config = SqueezeBertConfig(
        vocab_size=97,
        hidden_size=32,
        embedding_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=80,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
        **groups,
    )
    return SqueezeBertForSequenceClassification(config).eval()


def llama(dtype: torch.dtype = torch.float32, *, tied: bool = False, biases: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=40,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        attention_bias=biases,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def token_ids(rows: int = 8, length: int = 12) -> torch.Tensor:
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(1))


def labels(rows: int = 8) -> torch.Tensor:
    return torch.randint(0, 2, (rows,), generator=torch.Generator().manual_seed(2))


def shaken(model: torch.nn.Module, adapter: str = "default", seed: int = 3) -> torch.nn.Module:
    """The model with every trained KaSA tensor of an adapter moved away from its start, so that B is not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".kasa_" in name and "tail" not in name and name.endswith(f".{adapter}"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model

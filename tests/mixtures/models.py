"""A tiny decoder with each mixture, trained parameters drawn at random, and batches with prompts."""

from __future__ import annotations

from typing import Any

import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kasatune.mixtures import MaloraConfig, MiloraMoeConfig, MoeLoraConfig, MorConfig

CONFIGS: dict[str, Any] = {
    "moe-lora": MoeLoraConfig,
    "mor": MorConfig,
    "malora": MaloraConfig,
    "milora-moe": MiloraMoeConfig,
}
KINDS = list(CONFIGS)
TOKENS = ["moe-lora", "mor", "malora"]
CHOOSING = ["moe-lora", "malora"]
BALANCED = [*CHOOSING, "milora-moe"]
ALL_EXPERTS = {"moe-lora": {"top_k": 8}, "mor": {}, "malora": {"top_k": 8}, "milora-moe": {"top_k": 7}}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOCABULARY = 50


def base(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """A decoder with grouped queries, the same at every call."""
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def config(kind: str, **settings: Any) -> Any:
    """A configuration on all linear layers of the blocks."""
    return CONFIGS[kind](**{"r": 2, "lora_alpha": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **settings})


def adapted(kind: str, seed: int | None = 1, dtype: torch.dtype = torch.float32, **settings: Any) -> peft.PeftModel:
    """The mixture on the base, in evaluation mode; its parameters changed as by training unless `seed` is None."""
    torch.manual_seed(3)
    model = peft.get_peft_model(base(dtype), config(kind, **settings))
    if seed is not None:
        shake(model, seed)
    return model.eval()


def shake(model: torch.nn.Module, seed: int = 1, size: float = 0.3) -> None:
    """Add noise to every trained parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)


def batch(rows: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of a prompt and an answer, padded on the right; the labels of prompt and padding are -100."""
    generator = torch.Generator().manual_seed(seed)
    width = 11
    ids = torch.randint(3, VOCABULARY, (rows, width), generator=generator)
    labels, mask = ids.clone(), torch.ones_like(ids)
    for row in range(rows):
        prompt, length = 3 + row % 3, width - row % 4
        ids[row, length:], mask[row, length:] = 0, 0
        labels[row, :prompt], labels[row, length:] = -100, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def part(rows: dict[str, torch.Tensor], start: int, stop: int) -> dict[str, torch.Tensor]:
    """Some rows of a batch."""
    return {key: value[start:stop] for key, value in rows.items()}


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trained parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}

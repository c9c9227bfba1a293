"""Text on which a base calibrates itself: written by the model, or read with the tokenizer beside its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from kasatune.io.library_noise import quiet
from kasatune.kasa.truncation.undisturbed_model import device_of, seeded

SEQUENCES = 16
LENGTH = 96


def generate_text(model: Any, seed: int) -> Tensor:
    """Text that a causal language model samples from itself, token ids (16, 96); see `measure_generated`."""
    with seeded(model, seed), torch.no_grad():
        return write_text(model, model.config, model.config.vocab_size)


def write_text(model: Any, config: Any, vocabulary: int) -> Tensor:
    """Sample 16 sequences of 96 tokens; see `measure_activations.measure_generated`."""
    settings = model.generation_config
    ends = _listed(settings.eos_token_id) + _listed(config.eos_token_id)
    first = next((token for token in (*_listed(settings.bos_token_id), *_listed(config.bos_token_id), *ends)), None)
    if first is None:
        prompt = torch.randint(vocabulary, (SEQUENCES, 1), device=device_of(model))
    else:
        prompt = torch.full((SEQUENCES, 1), first, device=device_of(model))
    # `generate` fills what a configuration leaves open, such as a repetition penalty, from the model's own
    model.generation_config = GenerationConfig()
    try:
        return model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=GenerationConfig(
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=calibration_length(config) - 1,
                suppress_tokens=sorted(set(ends)) or None,
                pad_token_id=ends[0] if ends else 0,
                eos_token_id=None,
            ),
        )
    finally:
        model.generation_config = settings


def calibration_length(config: Any) -> int:
    """Tokens of a calibration text: LENGTH, or the model's positions less 2, for offsets such as RoBERTa's."""
    limit = getattr(config, "max_position_embeddings", None)
    return min(LENGTH, limit - 2) if isinstance(limit, int) and limit > 3 else LENGTH


def _listed(tokens: int | list[int] | None) -> list[int]:
    return tokens if isinstance(tokens, list) else [] if tokens is None else [tokens]


def own_tokenizer(config: Any, vocabulary: int) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the folder or cached repository that the model was loaded from; None if there is none."""
    place: str = getattr(config, "_name_or_path", "")
    if not place:
        return None
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError):
        return None
    # transformers makes a tokenizer of a few special tokens where the files are missing
    return tokenizer if vocabulary / 2 <= len(tokenizer) <= vocabulary else None

"""Whether a model computes rows that are packed into one sequence as it computes them alone."""

from __future__ import annotations

from typing import Any

import torch

from kasatune.errors import InputError, RecipeError
from kasatune.evaluation.batches import FORWARD_FAULTS, evaluation_mode

_LENGTHS = (4, 2, 3)


def require_packable(model: Any) -> None:
    """Refuse a model whose logits of three packed rows differ from those of the same rows alone.

    Packed rows are separated by their position ids alone. Models that do not use them (ALiBi, recurrent layers) would
    let a row read the rows before it.

    Args:
        model: a causal language model, with or without adapters.

    Raises:
        RecipeError: the logits differ, or the model does not take position ids.
    """
    try:
        difference = packing_difference(model)
    except InputError as fault:  # of a method that decides for a row, such as a router of prompts
        raise RecipeError([f"training.packing: true received; {fault}"]) from fault
    except FORWARD_FAULTS as fault:
        reason = f"fails with position ids ({type(fault).__name__})"
    else:
        float32 = next(model.parameters()).dtype == torch.float32
        if difference <= (1e-3 if float32 and not getattr(model, "is_quantized", False) else 3e-2):
            return
        reason = (
            f"gives other outputs for packed rows than for the same rows alone (relative difference {difference:.1e})"
        )
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    raise RecipeError([f"training.packing: true received; {type(bare).__name__} {reason}; leave it out"])


def packing_difference(model: Any) -> float:
    """Largest |packed - alone| / largest |alone| over the logits of three short rows of token ids."""
    size = model.get_input_embeddings().weight.shape[0]
    rows = [torch.arange(length).add(7 * number).remainder(size) for number, length in enumerate(_LENGTHS)]
    positions = torch.cat([torch.arange(length) for length in _LENGTHS])
    with evaluation_mode(model, "float32") as device:
        alone = torch.cat([model(input_ids=row[None].to(device), use_cache=False).logits[0] for row in rows]).float()
        ids = torch.cat(rows)[None].to(device)
        packed = model(input_ids=ids, position_ids=positions[None].to(device), use_cache=False).logits[0].float()
    return float((packed - alone).abs().max() / alone.abs().max().clamp(min=1e-6))

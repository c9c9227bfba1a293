"""Evaluation batches: the model in eval mode, no gradients, mixed precision, and rows of similar length together."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

FORWARD_FAULTS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError)
"""What a model raises in a forward pass with arguments that it does not take."""

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@contextmanager
def evaluation_mode(model: nn.Module, precision: str) -> Generator[torch.device]:
    """Evaluate `model` inside this context: eval mode, no gradients, and the recipe's mixed precision.

    Gives the device of the model. The model's training mode is restored afterwards.

    Args:
        model: any module with parameters.
        precision: "float32", "bfloat16" or "float16" (autocast).
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _autocast(device, precision):
            yield device
    finally:
        model.train(was_training)


def batches_by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of the rows of each batch: longest rows first, rows of equal length in their order.

    Little padding is computed this way, and the batches depend on the lengths and on `batch_size` alone.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def token_counts(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The number of tokens of each tokenized row."""
    return [len(row["input_ids"]) for row in rows]


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors of a batch on `device`."""
    return {name: value.to(device) for name, value in batch.items()}


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST[precision])

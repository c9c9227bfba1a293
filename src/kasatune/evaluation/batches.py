"""Evaluation batches: the model in eval mode, no gradients, mixed precision, and rows of similar length together."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kasatune.distributed.process_group import world_size
from kasatune.io.environment import available_memory

FORWARD_FAULTS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError)
"""What a model raises in a forward pass with arguments that it does not take."""

_SHARE_OF_MEMORY = 0.5  # of what is available, for copies of weights in 16 bits

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
        with torch.no_grad(), _weights_cast_once(model, device, precision), _autocast(device, precision):
            yield device
    finally:
        model.train(was_training)


@contextmanager
def _weights_cast_once(model: nn.Module, device: torch.device, precision: str) -> Generator[None]:
    """Let autocast keep the copies of frozen weights that it makes, on a CPU with the memory for them.

    It keeps copies of weights that require gradients, which no_grad makes void, and casts the others in every forward
    pass: for one token of each text, that takes longer than the products.
    """
    if precision == "float32" or device.type != "cpu" or world_size() > 1:
        yield
        return
    layers = [module for module in model.modules() if type(module) is nn.Linear and _is_cast(module.weight)]
    weights = {id(layer.weight): layer.weight for layer in layers}
    if sum(weight.numel() for weight in weights.values()) * 2 > _SHARE_OF_MEMORY * (available_memory() or 0):
        yield
        return
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        yield
    finally:
        # an adapter may have replaced the weight of its base layer, by one that requires what the old one did
        for weight in (*weights.values(), *(layer.weight for layer in layers)):
            weight.requires_grad_(False)


def _is_cast(weight: Tensor) -> bool:
    """Whether autocast casts a weight and does not keep the copy."""
    return type(weight) is nn.Parameter and weight.dtype == torch.float32 and not weight.requires_grad


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

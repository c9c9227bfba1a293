"""Tensors that may be sharded over processes, as torch's fully_shard leaves them: gathered, and dealt out again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or what all processes hold of it together; then every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """`value`, whole on every process, laid out over devices and processes as `parameter` is."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value


@torch.no_grad()
def put(value: Tensor, parameter: Tensor) -> None:
    """Copy `value`, whole on every process, into a parameter."""
    parameter.copy_(like(value.to(parameter.dtype), parameter))

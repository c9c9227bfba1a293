"""Tensors that may be sharded over processes, by torch's fully_shard or by ZeRO-3: gathered, and dealt out again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from kasatune.distributed import zero3_parameters as zero3


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or what all processes hold of it together; then every process must ask for it."""
    if zero3.is_dealt_out(tensor):
        return zero3.gathered(tensor)
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether other processes hold parts of it."""
    return isinstance(tensor, DTensor) or zero3.is_dealt_out(tensor)


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

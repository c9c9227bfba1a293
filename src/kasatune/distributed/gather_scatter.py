"""Gather and scatter tensors that FSDP2 (fully_shard) or DeepSpeed ZeRO-3 may have sharded over processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from kasatune.distributed import zero3


def gather_full(tensor: Tensor) -> Tensor:
    """The full tensor, gathered from all processes where it is sharded (then every process must call this)."""
    if zero3.is_partitioned(tensor):
        return zero3.gathered(tensor)
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether other processes hold parts of the tensor."""
    return isinstance(tensor, DTensor) or zero3.is_partitioned(tensor)


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """`value`, a full tensor on every process, with the device and sharding of `parameter`."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value


@torch.no_grad()
def scatter_(value: Tensor, parameter: Tensor) -> None:
    """Copy `value`, a full tensor on every process, into a parameter that may be sharded, in place."""
    parameter.copy_(shard_like(value.to(parameter.dtype), parameter))

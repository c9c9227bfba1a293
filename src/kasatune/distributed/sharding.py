"""A model sharded over the processes of a run, where accelerate is told to: by FSDP2 (fully_shard) or by ZeRO-3."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

from kasatune.distributed.process_group import count
from kasatune.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Set by `accelerate launch --use_fsdp`, or by hand for torchrun.
_SHARDED = "ACCELERATE_USE_FSDP"
_VERSION = "FSDP_VERSION"
_OFFLOAD = "FSDP_OFFLOAD_PARAMS"
_RESHARD = "FSDP_RESHARD_AFTER_FORWARD"
_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
_YES = ("true", "1", "yes")


def are_sharded() -> bool:
    """Whether the environment asks for a model that is sharded over several processes.

    Raises:
        InputError: see `by_deepspeed`; or by FSDP's first version, which flattens the parameters that the penalty is
            for.
    """
    if by_deepspeed():
        return True
    if not _says(_SHARDED) or count() == 1:
        return False
    if os.environ.get(_VERSION, "2") != "2":
        raise InputError(
            f"{_VERSION}={os.environ[_VERSION]}: FSDP's first version keeps parameters in flat buffers, where no "
            "penalty can reach them; give accelerate launch --fsdp_version 2"
        )
    return True


def by_deepspeed() -> bool:
    """Whether it is DeepSpeed that the environment asks to shard.

    Raises:
        InputError: it is not installed, has one process alone, or is asked for beside FSDP.
    """
    if not _says(_DEEPSPEED):
        return False
    if _says(_SHARDED):
        raise InputError(f"{_DEEPSPEED} and {_SHARDED} are both true: one of them can shard a model; unset the other")
    if count() == 1:
        raise InputError(
            f"{_DEEPSPEED}=true: there is one process, and nothing to deal out; start without it, or more processes"
        )
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingExtraError("DeepSpeed", "deepspeed")
    return True


def shard(model: nn.Module, base: PreTrainedModel, device: torch.device) -> None:
    """Give every process its part of each block's parameters, and of the rest, by FSDP2; changed in place.

    The blocks go to the device one after the other, so that it never holds the whole model.

    Args:
        model: what is trained, in the memory of the processor.
        base: the model that it is or wraps, whose class says what its blocks are.
        device: where the parts go.
    """
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (count(),)),
        "reshard_after_forward": os.environ.get(_RESHARD, "true").lower() in _YES,
    }
    if _says(_OFFLOAD) and device.type != "cpu":
        options["offload_policy"] = CPUOffloadPolicy()
    blocks = set(base._no_split_modules or ())
    for module in [module for module in model.modules() if type(module).__name__ in blocks]:
        fully_shard(module, **options)
    fully_shard(model, **options)
    # The Trainer then leaves placement, wrapping and the exchange of gradients to what is there.
    base._is_distributed_loading_by_transformers = True


def fits(model_bytes: int, device: torch.device) -> bool:
    """Whether a model has room on a device by itself, with a quarter more for what it computes."""
    return device.type != "cuda" or 1.25 * model_bytes < torch.cuda.mem_get_info(device)[0]


@contextmanager
def not_by_accelerate() -> Iterator[None]:
    """Within it accelerate does not shard by itself, on the kinds of devices where it can."""
    before = os.environ.pop(_SHARDED, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[_SHARDED] = before


def _says(name: str) -> bool:
    return os.environ.get(name, "").lower() in _YES

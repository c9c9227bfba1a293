"""FSDP2: shard a model with fully_shard where accelerate's environment variables ask for it (or for DeepSpeed)."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

from kasatune.distributed.process_group import world_size
from kasatune.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Set by `accelerate launch --use_fsdp`, or by the user of torchrun.
_USE_FSDP = "ACCELERATE_USE_FSDP"
_VERSION = "FSDP_VERSION"
_OFFLOAD = "FSDP_OFFLOAD_PARAMS"
_RESHARD = "FSDP_RESHARD_AFTER_FORWARD"
_USE_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
_TRUE = ("true", "1", "yes")


def sharding_requested() -> bool:
    """Whether the environment asks for a model sharded over several processes, by FSDP2 or by DeepSpeed.

    Raises:
        InputError: as `deepspeed_requested`; or FSDP version 1, whose flat buffers the penalty cannot reach.
    """
    if deepspeed_requested():
        return True
    if not _is_true(_USE_FSDP) or world_size() == 1:
        return False
    if os.environ.get(_VERSION, "2") != "2":
        raise InputError(
            f"{_VERSION}={os.environ[_VERSION]}: FSDP version 1 keeps parameters in flat buffers, where no penalty can "
            "reach them; use accelerate launch --fsdp_version 2"
        )
    return True


def deepspeed_requested() -> bool:
    """Whether the environment asks DeepSpeed to shard the model.

    Raises:
        InputError: DeepSpeed is not installed, has one process only, or is requested together with FSDP.
    """
    if not _is_true(_USE_DEEPSPEED):
        return False
    if _is_true(_USE_FSDP):
        raise InputError(
            f"{_USE_DEEPSPEED} and {_USE_FSDP} are both true: one of them can shard a model; unset the other"
        )
    if world_size() == 1:
        raise InputError(
            f"{_USE_DEEPSPEED}=true with one process: there is nothing to shard; start without it, or with more "
            "processes"
        )
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingExtraError("DeepSpeed", "deepspeed")
    return True


def shard_model(model: nn.Module, base: PreTrainedModel, device: torch.device) -> None:
    """Shard every block's parameters, and the remaining ones, over the processes with FSDP2; in place.

    The blocks move to the device one at a time, so that the device never holds the full model.

    Args:
        model: the model to train, in CPU memory.
        base: the model itself or the one that it wraps; its class names the blocks.
        device: where the shards are kept.
    """
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (world_size(),)),
        "reshard_after_forward": os.environ.get(_RESHARD, "true").lower() in _TRUE,
    }
    if _is_true(_OFFLOAD) and device.type != "cpu":
        options["offload_policy"] = CPUOffloadPolicy()
    blocks = set(base._no_split_modules or ())
    for module in [module for module in model.modules() if type(module).__name__ in blocks]:
        fully_shard(module, **options)
    fully_shard(model, **options)
    # The Trainer then leaves placement, wrapping and the exchange of gradients to fully_shard.
    base._is_distributed_loading_by_transformers = True


def fits_on_device(model_bytes: int, device: torch.device) -> bool:
    """Whether 1.25 times `model_bytes` are free on the device: the full model, and a quarter more for activations."""
    return device.type != "cuda" or 1.25 * model_bytes < torch.cuda.mem_get_info(device)[0]


@contextmanager
def without_accelerate_fsdp() -> Generator[None]:
    """Keep accelerate from sharding the model itself within the context (it would, on the devices it supports)."""
    before = os.environ.pop(_USE_FSDP, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[_USE_FSDP] = before


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").lower() in _TRUE

"""The processes that torchrun or accelerate started for one run, and what they agree on."""

from __future__ import annotations

import os
from typing import TypeVar

import torch.distributed as distributed

_Value = TypeVar("_Value")


def is_main() -> bool:
    """Whether this process is the one of a distributed run that writes."""
    return os.environ.get("RANK", "0") == "0"


def count() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def from_first(value: _Value) -> _Value:
    """The value that the first process gives; every process must ask."""
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]

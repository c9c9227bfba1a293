"""The processes that torchrun or accelerate started for a run: rank, world size, and values broadcast to all."""

from __future__ import annotations

import os
from typing import TypeVar

from torch import distributed

_Value = TypeVar("_Value")


def is_main() -> bool:
    """Whether this is the process that writes files: rank 0, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """The number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def broadcast_from_first(value: _Value) -> _Value:
    """The value that rank 0 passes; a collective call, so every process must make it."""
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]

"""The processes that share a decomposition: those that torchrun started, or a single one."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as distributed

_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Process:
    """This process: one of those that torchrun started, or the only one."""

    rank: int
    count: int


@contextmanager
def processes() -> Generator[Process]:
    """A context with the process group of torchrun, if there is one."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Process(0, 1)
        return
    distributed.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield Process(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()


def wait(process: Process) -> None:
    """Wait for every process."""
    if process.count > 1:
        distributed.barrier()


def gathered(written: dict[str, Any], process: Process) -> dict[str, Any]:
    """The index entries of all processes, in the first process; in the others, only their own entries."""
    if process.count == 1:
        return written
    everywhere: list[Any] | None = [None] * process.count if process.rank == 0 else None
    distributed.gather_object(written, everywhere)
    return {name: layer for part in everywhere for name, layer in part.items()} if everywhere else written

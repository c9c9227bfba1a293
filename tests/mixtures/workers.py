"""What each of two processes does in test_distributed.py; kept apart, because spawned processes import it."""

from __future__ import annotations

import os

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.mixtures.models import KINDS, adapted, batch, part, trained


def run(rank: int, port: str) -> None:
    """One process of two: each kind with replicated and with sharded parameters gives the gradient of one process."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    data = batch(8)
    number = data["labels"].ne(-100).sum()
    for kind in KINDS:
        expected = gradients(adapted(kind).train(), data, number)
        for shard in (False, True):
            model = adapted(kind).train()
            wrapped = sharded(model) if shard else DistributedDataParallel(model)
            # The processes' gradients are averaged.
            wrapped(**part(data, 4 * rank, 4 * rank + 4), num_items_in_batch=number / 2).loss.backward()
            for name, parameter in trained(model).items():
                gradient = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
                torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3, msg=f"{kind} {name}")
    torch.distributed.destroy_process_group()


def sharded(model: torch.nn.Module) -> torch.nn.Module:
    """Every block and the rest sharded with FSDP2."""
    for block in model.base_model.model.model.layers:
        fully_shard(block)
    fully_shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in trained(model).values())
    return model


def gradients(model: torch.nn.Module, data: dict[str, torch.Tensor], number: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradients of one pass over all rows."""
    model(**data, num_items_in_batch=number).loss.backward()
    return {name: parameter.grad for name, parameter in trained(model).items()}

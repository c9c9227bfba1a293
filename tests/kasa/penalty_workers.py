"""What each of two processes does in test_penalty_distributed.py; kept apart, because spawned processes import it."""

import contextlib
import os

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from kasatune.kasa import KasaLayer
from tests.kasa.penalty_probe import Probe, adapted, assert_penalized_once, batch, no_warning, train, trainable
from tests.kasa.penalty_trainers import fit

STEPS = 3


def run(rank, port, folder):
    """One process of two; a failed assertion ends both."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    replicated(rank)
    sharded(rank)
    trained(folder)
    torch.distributed.destroy_process_group()


def replicated(rank):
    """DistributedDataParallel: with and without bucket views, gradients dropped or zeroed, accumulated without sync."""
    task = train(adapted(penalty="none"), steps=STEPS)
    for bucket_view in (False, True):
        for set_to_none in (False, True):
            for pieces in (1, 2):
                model = adapted()
                wrapped = DistributedDataParallel(model, gradient_as_bucket_view=bucket_view)
                with no_warning():
                    seen = train_shared(rank, model, wrapped, set_to_none=set_to_none, pieces=pieces)
                assert_penalized_once(seen, task)


def sharded(rank):
    """fully_shard on every block and on the whole."""
    for convention, set_to_none in (("paper", True), ("authors", False)):
        task = train(adapted(convention=convention, penalty="none"), steps=STEPS)
        model = adapted(convention=convention)
        for block in model.base_model.model.bert.encoder.layer:
            fully_shard(block)
        fully_shard(model)
        layers = [module for module in model.modules() if isinstance(module, KasaLayer)]
        assert all(isinstance(factor, DTensor) for layer in layers for factor in layer.factors("default"))
        with no_warning():
            seen = train_shared(rank, model, model, set_to_none=set_to_none, pieces=1)
        assert_penalized_once(seen, task, convention)


def train_shared(rank, model, wrapped, *, set_to_none, pieces):
    """The steps of penalty_probe.train, each process with its half of every batch."""
    optimizer = torch.optim.SGD(trainable(model), lr=0.0)
    probe = Probe(model, optimizer)
    for step in range(STEPS):
        whole = batch(seed=10 * step)
        size = 4 // pieces
        for piece in range(pieces):
            first = 4 * rank + piece * size
            last = piece == pieces - 1
            with contextlib.nullcontext() if last else wrapped.no_sync():
                loss = wrapped(**{key: value[first : first + size] for key, value in whole.items()}).loss
                (loss / pieces).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
    return probe.steps


def trained(folder):
    """transformers' Trainer as torchrun starts it."""
    settings = {"ddp_backend": "gloo", "steps": 2, "accumulation": 2}
    with no_warning():
        seen, trainer = fit(adapted(), folder, **settings)
    assert trainer.args.world_size == 2
    task, _ = fit(adapted(penalty="none"), folder, **settings)
    assert_penalized_once(seen, task)

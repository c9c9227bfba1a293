"""The mixtures on two processes: DistributedDataParallel and fully_shard."""

from __future__ import annotations

import socket

import pytest
import torch

from tests.mixtures.workers import run


@pytest.mark.process
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs PyTorch with torch.distributed")
def test_two_processes_have_the_gradient_of_one(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    torch.multiprocessing.spawn(run, args=(port,), nprocs=2)

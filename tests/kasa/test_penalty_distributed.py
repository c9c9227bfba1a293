"""The penalty on two processes: DistributedDataParallel, fully_shard, and Trainer on top of the first."""

import socket

import pytest
import torch

from tests.kasa.penalty_workers import run


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.mark.process
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs PyTorch with torch.distributed")
def test_two_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.multiprocessing.spawn(run, args=(free_port(), str(tmp_path)), nprocs=2)

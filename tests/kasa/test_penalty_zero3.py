"""The penalty under DeepSpeed's ZeRO-3, stepped by DeepSpeed's engine without any trainer."""

import importlib.util

import pytest
import torch

from tests.processes import together


@pytest.mark.process
@pytest.mark.skipif(
    not torch.distributed.is_available() or importlib.util.find_spec("deepspeed") is None,
    reason="needs torch.distributed and the extra deepspeed",
)
def test_buffers_are_stepped_with_the_penalty():
    from tests.kasa.zero3_workers import run

    together(2, run)

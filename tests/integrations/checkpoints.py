"""Checks of the checkpoints that a trainer wrote after one and two steps of plain gradient descent from B = 0."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.integrations.environments import run

PARITY = Path(__file__).with_name("adapter_parity.py")


def tensors(checkpoint: Path) -> dict[str, Tensor]:
    return load_file(checkpoint / "adapter_model.safetensors")


def assert_penalized_once(penalized: Path, task: Path, learning_rate: float, beta: float, gamma: float) -> None:
    """The first steps of two runs that differ in the penalty alone differ by its closed-form gradient, and that once.

    At B = 0 the task has no gradient for sigma and A, and the penalty none for B:
    sigma <- sigma - lr 2 beta sigma, A <- A - lr gamma d||A A^T - I||_F / dA.
    """
    with_penalty, without = tensors(penalized), tensors(task)
    assert with_penalty.keys() == without.keys()
    moved = 0.0
    for name, start in without.items():
        got = with_penalty[name]
        if "kasa_sigma" in name:
            torch.testing.assert_close(got, start * (1 - 2 * learning_rate * beta), rtol=1e-5, atol=1e-6)
        elif "kasa_A" in name:
            A = start.clone().requires_grad_()
            (A @ A.T - torch.eye(len(A))).norm().backward()
            torch.testing.assert_close(got, start - learning_rate * gamma * A.grad, rtol=1e-5, atol=1e-6)
        else:
            torch.testing.assert_close(got, start, rtol=1e-5, atol=1e-6)
            moved = max(moved, float(start.abs().max())) if "kasa_B" in name else moved
    assert moved > 1e-4, "no step of the task"


def assert_same_adapter(one: Path, other: Path) -> None:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-6)


def assert_different_adapters(one: Path, other: Path) -> None:
    first, second = tensors(one), tensors(other)
    assert any(not torch.allclose(first[name], second[name], atol=1e-5) for name in first)


def export_command(base: Path, checkpoint: Path, lora: Path) -> list[object]:
    """Exports the checkpoint to LoRA, with the logits that it gives."""
    return [PARITY, "export", base, checkpoint, lora]


def assert_loads_in_plain_peft(python: Path, base: Path, lora: Path) -> None:
    """The export gives the checkpoint's logits in a process with PEFT and without kasatune."""
    run(python, PARITY, "plain", base, lora, cwd=lora.parent)

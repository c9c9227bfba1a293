"""One layer, fitted to targets by gradient descent on the paper's equations in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from kasatune.kasa import oracle
from kasatune.kasa.functional import Factors

# 9 x 10 and r = 3: the authors' index drops two triplets here, the paper's three.
OUT, IN, R, ROWS = 9, 10, 3, 6
SCALING, BETA, GAMMA = 2.0, 0.05, 0.02
LEARNING_RATE, STEPS = 0.05, 12
CASES = [(convention, core) for convention in ("paper", "authors") for core in ("diagonal", "dense")]


def inputs() -> dict[str, Tensor]:
    """W, x, targets and the factors' start; every factor away from zero, so that every gradient counts at once."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"W": (OUT, IN), "x": (ROWS, IN), "y": (ROWS, OUT), "A": (R, IN), "B": (OUT, R)}
    shapes |= {"diagonal": (R,), "dense": (R, R)}
    return {
        name: (0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).round(decimals=3)
        for name, shape in shapes.items()
    }


def start(tensors: dict[str, Tensor], core: str) -> Factors:
    """The factors before training, as leaves."""
    return Factors(*(tensors[key].clone().requires_grad_() for key in ("A", core, "B")))


def solve(tensors: dict[str, Tensor], convention: str, core: str) -> dict:
    """mean((x W'^T - y)^2) + penalty by gradient descent: both parts before every step, and the factors at the end."""
    factors = start(tensors, core)
    task_losses, penalties = [], []
    for _ in range(STEPS):
        adapted = oracle.adapted_weight(tensors["W"], factors, SCALING, convention)
        task = (tensors["x"] @ adapted.T - tensors["y"]).square().mean()
        penalty = oracle.penalty([factors], BETA, GAMMA, convention)
        task_losses.append(task.item())
        penalties.append(penalty.item())
        gradients = torch.autograd.grad(task + penalty, factors)
        with torch.no_grad():
            for factor, gradient in zip(factors, gradients, strict=True):
                factor -= LEARNING_RATE * gradient
    return {
        "task_loss": task_losses,
        "penalty": penalties,
        "final": {name: factor.tolist() for name, factor in factors._asdict().items()},
    }

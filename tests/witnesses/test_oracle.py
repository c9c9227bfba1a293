"""The paper's equations in float64 as a witness, live and as numbers that were written down."""

import json

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from kasatune import KasaConfig, regularization
from kasatune.kasa import KasaLayer, oracle
from kasatune.kasa.functional import Factors
from tests.kasa.penalty_probe import scatter
from tests.witnesses import oracle_problem as problem
from tests.witnesses.agreement import relative
from tests.witnesses.make_oracle_golden import GOLDEN

STORED = json.loads(GOLDEN.read_text(encoding="utf-8"))
PRECISION = {torch.float64: 1e-10, torch.float32: 2e-5}


class OneLayer(nn.Module):
    """A model of nothing but a layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def stored_inputs(dtype=torch.float64):
    return {name: torch.tensor(values, dtype=dtype) for name, values in STORED["inputs"].items()}


def one_layer(W, conv1d=False):
    rows, columns = W.shape
    layer = Conv1D(rows, columns) if conv1d else nn.Linear(columns, rows)
    layer = layer.to(W.dtype)
    with torch.no_grad():
        layer.weight.copy_(W.T if conv1d else W)
        layer.bias.zero_()
    return OneLayer(layer)


def adapted(W, r, conv1d=False, **settings):
    config = KasaConfig(r=r, target_modules=["layer"], beta=problem.BETA, gamma=problem.GAMMA, **settings)
    return peft.get_peft_model(one_layer(W, conv1d), config)


@pytest.mark.parametrize(("convention", "core"), problem.CASES)
def test_the_oracle_still_gives_the_numbers_written_down(convention, core):
    solution = problem.solve(stored_inputs(), convention, core)
    wanted = STORED["solutions"][f"{convention}-{core}"]
    assert solution["task_loss"] == pytest.approx(wanted["task_loss"], rel=1e-10)
    assert solution["penalty"] == pytest.approx(wanted["penalty"], rel=1e-10)
    for name, values in solution["final"].items():
        assert relative(values, wanted["final"][name]) < 1e-10


@pytest.mark.parametrize("truncation", ["attach", "fold"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("convention", "core"), problem.CASES)
def test_training_gives_the_numbers_written_down(convention, core, dtype, truncation):
    tensors, wanted = stored_inputs(dtype), STORED["solutions"][f"{convention}-{core}"]
    settings = {"convention": convention, "core": core, "truncation": truncation}
    model = adapted(tensors["W"], problem.R, lora_alpha=problem.SCALING * problem.R, **settings)
    layer = model.base_model.model.layer
    factors = layer.factors("default")
    with torch.no_grad():
        for factor, first in zip(factors, problem.start(tensors, core), strict=True):
            factor.copy_(first)
    optimizer = torch.optim.SGD(factors, lr=problem.LEARNING_RATE)
    for task_loss, penalty in zip(wanted["task_loss"], wanted["penalty"], strict=True):
        loss = (model(tensors["x"]) - tensors["y"]).square().mean()
        assert loss.item() == pytest.approx(task_loss, rel=PRECISION[dtype])
        assert regularization(model).item() == pytest.approx(penalty, rel=PRECISION[dtype])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for factor, name in zip(factors, Factors._fields, strict=True):
        assert relative(factor, wanted["final"][name]) < PRECISION[dtype]


@pytest.mark.parametrize("truncation", ["attach", "fold"])
@pytest.mark.parametrize("conv1d", [False, True], ids=["linear", "conv1d"])
@pytest.mark.parametrize("shape", [(12, 12), (20, 8), (8, 20), (12, 13)], ids=str)
@pytest.mark.parametrize(("convention", "core"), problem.CASES)
def test_forward_and_merged_weight_are_the_oracle_s(convention, core, shape, conv1d, truncation):
    generator = torch.Generator().manual_seed(3)
    W = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = torch.randn(5, shape[1], generator=generator, dtype=torch.float64)
    settings = {"convention": convention, "core": core, "truncation": truncation}
    model = adapted(W, 3, conv1d=conv1d, lora_alpha=4.5, use_rslora=core == "dense", **settings)
    scatter(model)
    layer = model.base_model.model.layer
    scaling = 4.5 / (3**0.5 if core == "dense" else 3)
    wanted = oracle.adapted_weight(W, layer.factors("default"), scaling, convention)
    assert relative(model(x), x @ wanted.T) < 1e-12
    assert (
        relative(
            regularization(model), oracle.penalty([layer.factors("default")], problem.BETA, problem.GAMMA, convention)
        )
        < 1e-12
    )
    merged = model.merge_and_unload().layer.weight
    assert relative(merged.T if conv1d else merged, wanted) < 1e-12


@pytest.mark.parametrize(("convention", "core"), problem.CASES)
def test_twenty_adam_steps_on_several_layers_go_the_oracle_s_way(convention, core):
    generator = torch.Generator().manual_seed(4)
    shapes = [(12, 10), (12, 12), (8, 12)]
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) / 3 for shape in shapes]
    x, y = (torch.randn(6, n, generator=generator, dtype=torch.float64) for n in (10, 8))

    stack = nn.Sequential(*(one_layer(W).layer for W in weights))
    config = KasaConfig(
        r=3, lora_alpha=6, target_modules=["0", "1", "2"], beta=0.3, gamma=0.1, core=core, convention=convention
    )
    model = peft.get_peft_model(stack, config)
    scatter(model)
    ours = [layer.factors("default") for layer in model.modules() if isinstance(layer, KasaLayer)]
    theirs = [Factors(*(f.detach().clone().requires_grad_() for f in factors)) for factors in ours]
    optimizers = [torch.optim.AdamW([f for factors in all_ for f in factors], lr=1e-2) for all_ in (ours, theirs)]
    for _ in range(20):
        (model(x) - y).square().mean().backward()
        hidden = x
        for W, factors in zip(weights, theirs, strict=True):
            hidden = hidden @ oracle.adapted_weight(W, factors, 2.0, convention).T
        ((hidden - y).square().mean() + oracle.penalty(theirs, 0.3, 0.1, convention)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for mine, other in zip(ours, theirs, strict=True):
        for got, wanted in zip(mine, other, strict=True):
            assert relative(got, wanted) < 1e-9

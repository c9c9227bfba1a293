"""A loss out of the forward pass, as a mixture's router has, in every engine."""

from __future__ import annotations

import json

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kasatune import methods
from kasatune.methods.lora import Lora, lora_layers
from kasatune.training.train import train
from tests.toys import make_recipe
from tests.training.test_instruction_runs import recipe as make_instruction_recipe


class Routed(Lora):
    """LoRA with weight * mean over rows of |A x|^2 at the first token of the first adapted layer."""

    def __init__(self, weight):
        self.weight = weight
        self.counted = 0

    def attach(self, model, settings, kind, new_modules):
        attached = super().attach(model, settings, kind, new_modules)
        _, layer = next(iter(lora_layers(attached)))
        layer.lora_A["default"].register_forward_hook(self.remember)
        return attached

    def remember(self, module, inputs, output):
        self.routed = output

    def forward_loss(self, model):
        self.counted += 1
        return self.weight * self.routed[:, 0].square().sum(-1).mean() if self.weight else None


def first_step(recipe, folder, weight, monkeypatch):
    """The method, the gradients before the first optimizer step, and the event of that step."""
    method = Routed(weight)
    monkeypatch.setattr(methods, "load", lambda name: method)
    steps = []

    def keep(optimizer, *_):
        steps.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    hook = register_optimizer_step_pre_hook(keep)
    try:
        train(recipe, folder)
    finally:
        hook.remove()
    events = [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    return method, steps[0], next(event for event in events if event["event"] == "train")


@pytest.fixture
def classify(bert, tmp_path):
    return lambda **training: make_recipe(
        bert, tmp_path, train=8, epochs=1, method={"name": "lora"}, model_options={"dropout": 0}, **training
    )


@pytest.fixture
def instruct(llama, tmp_path):
    """Conversations of equal length, so that micro-batches of equal size have equally many learnt tokens."""
    return lambda **training: make_instruction_recipe(
        llama, tmp_path / "data", method={"name": "lora"}, number=8, **training
    )


@pytest.mark.parametrize("engine", ["classify", "instruct"])
def test_the_gradient_does_not_depend_on_the_accumulation(engine, request, tmp_path, monkeypatch):
    make = request.getfixturevalue(engine)
    plain = first_step(make(), tmp_path / "plain", 0.0, monkeypatch)
    assert "forward_loss" not in plain[2]
    reference = None
    for pieces in (1, 2, 4):
        recipe = make(gradient_accumulation=pieces)
        method, gradients, event = first_step(recipe, tmp_path / f"run{pieces}", 5.0, monkeypatch)
        assert method.counted == pieces
        assert event["loss"] == pytest.approx(plain[2]["loss"], rel=1e-5)
        reference = reference or (gradients, event)
        assert event["forward_loss"] == pytest.approx(reference[1]["forward_loss"], rel=1e-5) != 0
        for gradient, other in zip(gradients, reference[0], strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)
    differences = [float((a - b).norm()) for a, b in zip(reference[0], plain[1], strict=True)]
    assert sum(difference > 1e-3 for difference in differences) == 1, "the loss reaches the first A and nothing else"

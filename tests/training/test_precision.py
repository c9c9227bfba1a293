"""Runs in 16 bits and under a loss scale: what float32 gives, as closely as the bits allow."""

from __future__ import annotations

import json
import os
import signal

import accelerate
import pytest
import torch
from safetensors.torch import load_file

from kasatune.training.checkpoint_contents import load_scaler, save_scaler
from kasatune.training.train import train
from tests.toys import At, make_recipe

ROUNDING = 2.0**-8
"""The largest relative error of a number rounded to bfloat16."""


def events(run):
    lines = (run / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "train"]


def weights(run):
    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted(run.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize("name", ["kasa", "lora", "full"])
def test_bfloat16_follows_float32(name, bert, tmp_path):
    found = {}
    for precision in ("float32", "bfloat16"):
        recipe = make_recipe(
            bert,
            tmp_path,
            train=32,
            epochs=1,
            model_options={"dropout": 0},
            method={"name": name, "beta": 0.1, "gamma": 0.1},
            learning_rate=1e-3,
            precision=precision,
        )
        found[precision] = train(recipe, tmp_path / precision)
    wanted, seen = events(found["float32"]), events(found["bfloat16"])
    assert len(wanted) == 4
    assert [event["loss"] for event in seen] != [event["loss"] for event in wanted]
    assert [event["loss"] for event in seen] == pytest.approx([event["loss"] for event in wanted], rel=4 * ROUNDING)
    for key in wanted[0].keys() & {"penalty_sigma", "penalty_orthogonality"}:
        # Computed in float32; what differs is the weights, by less than a step of each.
        assert [event[key] for event in seen] == pytest.approx([event[key] for event in wanted], rel=ROUNDING)
    held = weights(found["bfloat16"])
    assert all(tensor.dtype == torch.float32 for tensor in held.values())
    for key, tensor in weights(found["float32"]).items():
        assert float((held[key] - tensor).abs().max()) <= 2 * 4 * 1e-3, key


@pytest.fixture
def scalers(monkeypatch):
    """Every run has a gradient scaler, as one in float16 on a GPU has; those that were made."""
    made = []
    begin = accelerate.Accelerator.__init__

    def begun(self, *arguments, **options):
        begin(self, *arguments, **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        made.append(self.scaler)

    monkeypatch.setattr(accelerate.Accelerator, "__init__", begun)
    return made


@pytest.mark.parametrize("name", ["kasa", "adalora"])
def test_a_loss_scale_scales_neither_a_step_nor_its_penalty(name, bert, tmp_path, monkeypatch, request):
    recipe = make_recipe(
        bert, tmp_path, epochs=2, method={"name": name, "beta": 0.1, "gamma": 0.1}, gradient_accumulation=2
    )
    wanted = weights(train(recipe, tmp_path / "plain"))
    made = request.getfixturevalue("scalers")
    found = weights(train(recipe, tmp_path / "scaled"))
    assert made and made[-1].get_scale() == 2.0**12  # doubled after 3 steps, and after 3 more
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():  # a power of two rounds nothing
        assert torch.equal(found[key], tensor), key


def test_a_run_that_was_stopped_goes_on_with_its_loss_scale(bert, tmp_path, scalers):
    recipe = make_recipe(bert, tmp_path, epochs=2, method={"dropout": 0.1})
    wanted = weights(train(recipe, tmp_path / "whole"))
    scale = scalers[-1].state_dict()
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=At(4, lambda: os.kill(os.getpid(), signal.SIGINT)))
    found = weights(train(recipe, tmp_path / "run", resume=True))
    assert scalers[-1].state_dict() == scale and scale["scale"] == 2.0**12
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())


def test_the_state_of_a_scaler_is_what_was_saved(tmp_path):
    one, other = torch.amp.GradScaler("cpu", init_scale=2.0**7, growth_interval=9), torch.amp.GradScaler("cpu")
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    for factor in (1.0, float("inf"), 1.0):
        one.scale((factor * parameter).sum()).backward()
        one.step(optimizer)
        one.update()
        optimizer.zero_grad()
    save_scaler(tmp_path, one)
    load_scaler(tmp_path, other)
    assert other.state_dict() == one.state_dict()
    assert one.get_scale() == 2.0**6 and one.state_dict()["_growth_tracker"] == 1

"""Hooks of a method in a run (data pass, losses, callbacks, state), and when they are called."""

from __future__ import annotations

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import TrainerCallback

from kasatune import methods
from kasatune.methods.lora import Lora
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.training.train import train
from tests.toys import At, make_recipe

WEIGHT = 0.25


class Curious(Lora):
    """LoRA, with a penalty on A and a record of every call."""

    def __init__(self, weight=0.0):
        self.weight = weight
        self.seen, self.totals, self.calls, self.state, self.restored = [], [], 0, 0, []

    def prepare(self, model, settings, batches):
        self.seen.append([(batch["input_ids"].shape, batch["labels"].tolist()) for batch in batches])
        self.trained = {name: value.detach().clone() for name, value in trainable(model).items()}
        self.evaluating = not model.training

    def callbacks(self, model, settings):
        return [Totals(self)]

    def step_penalty(self, model, settings):
        self.calls += 1
        terms = [value.square().sum() for name, value in trainable(model).items() if "lora_A" in name]
        return self.weight * torch.stack(terms).sum() if self.weight else None

    def training_state(self, model):
        return {"state": torch.tensor([self.state])}

    def restore_training_state(self, model, state):
        self.restored.append(int(state["state"]))


class Totals(TrainerCallback):
    def __init__(self, method):
        self.method = method

    def on_train_begin(self, args, state, control, **_):
        self.method.totals.append(state.max_steps)

    def on_optimizer_step(self, args, state, control, model, **_):
        self.method.state += 1
        assert all(parameter.grad is not None for parameter in trainable(model).values())


def use(monkeypatch, method):
    monkeypatch.setattr(methods, "load", lambda name: method)
    return method


def first_gradients(recipe, folder):
    found = []

    def keep(optimizer, *_):
        found.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    hook = register_optimizer_step_post_hook(keep)
    try:
        train(recipe, folder)
    finally:
        hook.remove()
    return found[0]


def recipe(bert, folder, **training):
    return make_recipe(bert, folder, method={"name": "lora"}, model_options={"dropout": 0}, **training)


@pytest.mark.parametrize("pieces", [1, 4])
def test_the_step_penalty_acts_once_per_optimizer_step(pieces, bert, tmp_path, monkeypatch):
    chosen = recipe(bert, tmp_path, train=8, epochs=1, gradient_accumulation=pieces, max_grad_norm=1e-6)
    steps = []
    for weight in (0.0, WEIGHT):
        method = use(monkeypatch, Curious(weight))
        steps.append(first_gradients(chosen, tmp_path / f"run{weight}"))
        assert method.calls == 1
    start = list(method.trained.values())
    added = [with_it - without for without, with_it in zip(*steps, strict=True)]
    moved = [value for value in added if float(value.norm()) > 1e-3]
    expected = [2 * WEIGHT * value for name, value in method.trained.items() if "lora_A" in name]
    assert len(start) > len(moved) == len(expected) == 4
    for found, value in zip(moved, expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-5)


def test_preparation_sees_every_training_row_once_in_an_order_of_the_seed(bert, tmp_path, monkeypatch):
    seen = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        method = use(monkeypatch, Curious())
        train(recipe(bert, tmp_path, train=24, epochs=1, gradient_accumulation=2, seed=seed), tmp_path / name)
        (seen[name],) = method.seen
        assert method.evaluating
        assert sum(len(labels) for _, labels in seen[name]) == 24
        assert {len(labels) for _, labels in seen[name]} == {4}
    assert seen["a"] == seen["b"] != seen["c"]


def test_callbacks_know_the_number_of_steps(bert, tmp_path, monkeypatch):
    method = use(monkeypatch, Curious())
    train(recipe(bert, tmp_path, train=24, epochs=1.5), tmp_path / "run")
    assert method.totals == [5]
    assert method.state == 5


def test_the_methods_own_state_is_there_after_a_stop(bert, tmp_path, monkeypatch):
    import signal

    chosen = recipe(bert, tmp_path, train=24, epochs=2)
    use(monkeypatch, Curious())
    with pytest.raises(KeyboardInterrupt):
        train(chosen, tmp_path / "run", display=At(2, lambda: signal.raise_signal(signal.SIGINT)))
    (checkpoint,) = (tmp_path / "run").rglob("checkpoint-*")
    method = use(monkeypatch, Curious())
    train(chosen, tmp_path / "run", resume=True)
    assert [f"checkpoint-{state}" for state in method.restored] == [checkpoint.name]
    assert len(method.seen) == 1


def rates(bert, folder, name, **method):
    found = {}

    def keep(optimizer, *_):
        for group in optimizer.param_groups:
            found.setdefault(group["initial_lr"], set()).update(p.shape for p in group["params"])

    hook = register_optimizer_step_post_hook(keep)
    try:
        chosen = make_recipe(bert, folder, train=8, epochs=1, method={"name": name, **method}, head_learning_rate=0.5)
        train(chosen, folder / "run")
    finally:
        hook.remove()
    return found


def test_lora_plus_gives_b_a_rate_of_its_own(bert, tmp_path):
    found = rates(bert, tmp_path, "lora-plus", options={"ratio": 4})
    assert found == {1e-2: {(2, 32)}, 4e-2: {(32, 2)}, 0.5: {(2, 32), (2,)}}


def test_lora_has_one_rate(bert, tmp_path):
    assert set(rates(bert, tmp_path, "lora")) == {1e-2, 0.5}

"""Bi-level training: outer parameters are trained on held-back rows alone, all others on the other rows alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from kasatune.errors import DataError, InputError
from kasatune.methods.milora_moe import METHOD
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.recipes.schema import Recipe, to_yaml
from kasatune.training.engines.bilevel import BilevelSampler
from kasatune.training.engines.run_trainer import RunTrainer
from kasatune.training.plan import make_plan
from kasatune.training.train import train
from tests import processes
from tests.toys import At, make_recipe
from tests.training.test_instruction_runs import recipe as make_instruction_recipe
from tests.training.test_resume import files, kill

OPTIONS = {"held_back": 0.5, "activation_rate": 1.0}


def bilevel(bert, folder, *, options=OPTIONS, **settings) -> Recipe:
    """Eleven batches of five rows an epoch, of which the last has four; dropout shows the random state of a resume."""
    method = {"name": "milora-moe", "options": options, "dropout": 0.2}
    return make_recipe(
        bert, folder, train=54, method=method, **{"batch_size": 5, "epochs": 2, "warmup_ratio": 0.0, **settings}
    )


def sampler(rows, size, share, *, epoch=0, lengths=None) -> BilevelSampler:
    return BilevelSampler(rows, size, share, 3, lambda: epoch, lengths)


# The order of the rows


def distinct(number):
    return [{"input_ids": [index], "labels": 0} for index in range(number)]


@pytest.mark.parametrize(("number", "size", "share", "outer"), [(54, 5, 0.5, 5), (40, 8, 0.2, 1), (30, 3, 0.3, 3)])
@pytest.mark.parametrize("grouped", [False, True])
def test_every_row_occurs_once_an_epoch_and_always_on_the_same_side(number, size, share, outer, grouped):
    lengths = [1 + index % 7 for index in range(number)] if grouped else None
    seen: list[set[int]] = [set(), set()]
    orders = []
    for epoch in (0, 1):
        order = sampler(distinct(number), size, share, epoch=epoch, lengths=lengths)
        rows = list(order)
        orders.append(rows)
        assert sorted(rows) == list(range(number)) and len(order) == number
        assert [order.is_outer(step) for step in range(order.steps)].count(True) == outer
        for step in range(order.steps):
            seen[order.is_outer(step)].update(rows[step * size : (step + 1) * size])
        assert not order.is_outer(order.steps - 1), "the step that may be short of rows is an inner one"
    assert orders[0] != orders[1]
    assert not seen[0] & seen[1]
    assert len(seen[1]) == outer * size


def test_half_of_the_steps_alternate_and_others_are_spread_evenly():
    def places(steps, share):
        order = sampler(distinct(steps), 1, share)
        return [step for step in range(2 * steps) if order.is_outer(step)]

    assert places(6, 0.5) == [0, 2, 4, 6, 8, 10]
    assert places(10, 0.2) == [2, 7, 12, 17]


def test_equal_rows_are_on_one_side():
    rows = [{"input_ids": [index // 3], "labels": 0} for index in range(30)]
    order = sampler(rows, 4, 0.5)
    drawn = list(order)
    held = {rows[index]["input_ids"][0] for index in order.held_back}
    for step in range(order.steps):
        contents = {rows[index]["input_ids"][0] for index in drawn[4 * step : 4 * step + 4]}
        assert contents <= held if order.is_outer(step) else not contents & held
    assert len(drawn) == 30
    assert max(Counter(drawn).values()) <= 2
    with pytest.raises(DataError, match="the training rows are all equal"):
        sampler([rows[0]] * 30, 4, 0.5)


# Runs


def levels_are_separate(recipe, folder, monkeypatch) -> None:
    """A step changes the outer parameters or the others, never both; no row is in steps of both kinds."""
    rows: list[tuple[int, set[tuple[int, ...]]]] = []
    changed: list[set[bool]] = []
    before: dict[str, torch.Tensor] = {}
    trainers: list[RunTrainer] = []
    step = RunTrainer.training_step

    def training_step(self, model, inputs, *further):
        contents = inputs["input_ids"], inputs["attention_mask"].bool()
        rows.append((self.state.global_step, {tuple(row[real].tolist()) for row, real in zip(*contents, strict=True)}))
        if not trainers:
            trainers.append(self)
            before.update({name: p.detach().clone() for name, p in trainable(self.run_model).items()})
        return step(self, model, inputs, *further)

    def after(*_):
        current = trainable(trainers[0].run_model)
        changed.append({METHOD.is_outer(name) for name, p in current.items() if not torch.equal(p, before[name])})
        before.update({name: p.detach().clone() for name, p in current.items()})

    monkeypatch.setattr(RunTrainer, "training_step", training_step)
    hook = register_optimizer_step_post_hook(after)
    try:
        run = train(recipe, folder)
    finally:
        hook.remove()
    events = [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    outer = [bool(event["held_back"]) for event in events if event["event"] == "train"]
    assert {True, False} <= set(outer)
    first = outer.index(False)  # B = 0 before the first inner step
    assert changed[first:] == [{level} for level in outer[first:]]
    sides = [set().union(*(own for number, own in rows if outer[number] == level)) for level in (True, False)]
    assert all(sides) and not sides[0] & sides[1]


@pytest.mark.parametrize("pieces", [1, 5])
def test_the_levels_are_separate(pieces, bert, tmp_path, monkeypatch):
    levels_are_separate(bilevel(bert, tmp_path, gradient_accumulation=pieces), tmp_path / "run", monkeypatch)


def test_the_levels_are_separate_in_trl(llama, tmp_path, monkeypatch):
    pytest.importorskip("trl")
    method = {"name": "milora-moe", "r": 2, "options": OPTIONS}
    recipe = make_instruction_recipe(llama, tmp_path / "data", method=method, batch_size=4, epochs=2)
    levels_are_separate(recipe, tmp_path / "run", monkeypatch)


def test_steps_that_train_everything_fail_that_law(bert, tmp_path, monkeypatch):
    monkeypatch.setattr(RunTrainer, "_drop_gradients_of_the_other_level", lambda self, bilevel: None)
    with pytest.raises(AssertionError):
        levels_are_separate(bilevel(bert, tmp_path), tmp_path / "run", monkeypatch)


def test_an_order_that_mixes_the_rows_fails_that_law(bert, tmp_path, monkeypatch):
    monkeypatch.setattr(BilevelSampler, "__iter__", lambda self: iter(torch.randperm(len(self)).tolist()))
    with pytest.raises(AssertionError):
        levels_are_separate(bilevel(bert, tmp_path), tmp_path / "run", monkeypatch)


@pytest.mark.parametrize("step", [4, 11, 15])
def test_a_resumed_run_gives_the_bytes_of_one_that_was_not_stopped(step, bert, tmp_path):
    recipe = bilevel(bert, tmp_path, save_steps=1)
    expected = files(train(recipe, tmp_path / "straight"))
    with pytest.raises(SystemExit):
        train(recipe, tmp_path / "run", display=At(step, kill))
    assert files(train(recipe, tmp_path / "run", resume=True)) == expected


# Recipes


def test_the_option_is_off_and_not_written_unless_it_is_set(bert, tmp_path):
    plain = bilevel(bert, tmp_path, options={"activation_rate": 1.0})
    assert plain.method.options["held_back"] == 0
    assert "held_back" not in plain.model_dump()["method"]["options"]
    held = bilevel(bert, tmp_path)
    assert held.model_dump()["method"]["options"]["held_back"] == 0.5
    assert Recipe.model_validate(held.model_dump()) == held
    assert METHOD.held_back(plain.method) == 0
    assert not METHOD.reads_parameters_in_training(plain.method)
    assert METHOD.reads_parameters_in_training(held.method), "refused with ZeRO-3"


def test_what_cannot_be_held_back_is_refused(bert, tmp_path):
    few = bilevel(bert, tmp_path, options={"held_back": 0.05})
    message = r"held_back: 0\.05 received; of the 11 steps of an epoch none is left .*54 rows in batches of 5"
    with pytest.raises(InputError, match=message):
        train(few, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert any("none is left for held-back rows" in problem for problem in make_plan(few).problems)
    with pytest.raises(InputError, match=r"held_back: 0\.5 received with activation_rate: 0"):
        train(bilevel(bert, tmp_path, options={"held_back": 0.5, "activation_rate": 0.0}), tmp_path / "run")


# Several processes


@pytest.mark.process
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs PyTorch with torch.distributed")
@pytest.mark.parametrize("work", [processes.train, processes.train_mixture_sharded])
def test_two_processes_give_what_one_gives(work, bert, tmp_path):
    method = {"name": "milora-moe", "options": OPTIONS}
    recipe = make_recipe(
        bert, tmp_path, train=27, method=method, model_options={"dropout": 0}, gradient_accumulation=2, batch_size=8
    )
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    processes.together(2, work, str(tmp_path / "recipe.yaml"), str(tmp_path / "two"))
    train(recipe, tmp_path / "one")
    steps = [[e for e in events(tmp_path / run) if e["event"] == "train"] for run in ("two", "one")]
    assert [step["held_back"] for step in steps[0]] == [step["held_back"] for step in steps[1]]
    assert {step["held_back"] for step in steps[0]} == {0, 1}
    assert [step["loss"] for step in steps[0]] == pytest.approx([step["loss"] for step in steps[1]], abs=1e-5)
    ours, theirs = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("two", "one"))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, atol=1e-5, rtol=0)


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]

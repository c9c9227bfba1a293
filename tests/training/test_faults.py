"""What a disk, a queue or another process does to a run: a message, what was finished is kept, nothing bad is read."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kasatune.errors import DataError, DivergedError, OutputError, WorkError
from kasatune.evaluation.evaluate import evaluate
from kasatune.training import callback, checkpoint_contents
from kasatune.training.checkpoints import MANIFEST
from kasatune.training.train import train
from tests.toys import At, Recorder, make_recipe, rows, write_csv
from tests.training.test_resume import files, kill


def stopped(recipe, out: Path, step: int = 8) -> Path:
    """A run that was killed in its third epoch, with checkpoints of two."""
    with pytest.raises(SystemExit):
        train(recipe, out, display=At(step, kill))
    return out / "unfinished"


@pytest.mark.parametrize("name", ["optimizer", "model", "method", "random-0", "best"])
def test_a_damaged_checkpoint_is_never_read_and_the_one_before_is_gone_on_with(name, bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, method={"dropout": 0.2}, epochs=3)
    whole = files(train(recipe, tmp_path / "whole"))
    work = stopped(recipe, tmp_path / "run")
    best = json.loads((work / "checkpoint-6" / MANIFEST).read_text())["best"]["name"]
    if name == "best" and best == json.loads((work / "checkpoint-3" / MANIFEST).read_text())["best"]["name"]:
        pytest.skip("the best state is that of both")
    damaged = work / best if name == "best" else work / "checkpoint-6" / f"{name}.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    display = Recorder()
    train(recipe, tmp_path / "run", resume=True, display=display)
    assert f"checkpoint-6 is not used: {damaged.name} has changed since it was written" in "".join(display.messages)
    assert display.steps == list(range(4, 10))
    assert files(tmp_path / "run") == whole


def test_a_checkpoint_that_was_not_written_to_its_end_is_not_used(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, method={"dropout": 0.2}, epochs=3)
    whole = files(train(recipe, tmp_path / "whole"))
    work = stopped(recipe, tmp_path / "run")
    (work / "checkpoint-6" / MANIFEST).unlink()
    (work / "checkpoint-3" / "trainer_state.json").write_text("{")
    display = Recorder()
    train(recipe, tmp_path / "run", resume=True, display=display)
    assert "checkpoint-6 is not used: it is incomplete (its manifest is missing or damaged)" in display.messages
    assert any("checkpoint-3 is not used: trainer_state.json" in message for message in display.messages)
    assert display.steps == list(range(1, 10))
    assert files(tmp_path / "run") == whole


def test_a_run_is_saved_within_an_epoch_too_and_resumes_to_the_same_result(bert, tmp_path, monkeypatch):
    recipe = make_recipe(bert, tmp_path, method={"dropout": 0.2}, epochs=3)
    whole = files(train(recipe, tmp_path / "whole"))
    monkeypatch.setattr(callback, "SAVE_SECONDS", 0.0)
    work = stopped(recipe, tmp_path / "run", step=5)
    assert sorted(path.name for path in work.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    assert not list(work.rglob("*.pt")) and not list(work.rglob("*.pth"))
    display = Recorder()
    train(recipe, tmp_path / "run", resume=True, display=display)
    assert display.steps == list(range(5, 10))
    assert files(tmp_path / "run") == whole


def test_the_state_of_the_optimizer_is_what_was_saved(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1.0) for _ in range(2)]
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, lambda step: 1 / (step + 3)) for one in optimizers]
    for _ in range(3):
        model(torch.randn(5, 3)).square().sum().backward()
        optimizers[0].step()
        schedules[0].step()
    checkpoint_contents.save_optimizer(tmp_path, model, optimizers[0], schedules[0], writes=True)
    checkpoint_contents.save_random_state(tmp_path, 0)
    wanted = torch.randn(4)
    checkpoint_contents.load_optimizer(tmp_path, model, optimizers[1], schedules[1])
    checkpoint_contents.load_random_state(tmp_path, 0)
    assert torch.equal(torch.randn(4), wanted)
    assert schedules[0].state_dict() == schedules[1].state_dict()
    one, other = (optimizer.state_dict() for optimizer in optimizers)
    assert one["param_groups"] == other["param_groups"]
    for number, state in one["state"].items():
        assert all(torch.equal(value, other["state"][number][key]) for key, value in state.items())


def test_an_evaluation_draws_nothing_from_the_generators_of_training(bert, tmp_path, monkeypatch):
    states = []
    whole = callback.RunCallback.evaluate

    def drawing(self):
        score = self.score
        self.score = lambda: (random.random(), np.random.rand(), torch.rand(1), score())[-1]
        before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        found = whole(self)
        after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        states.append(before == after)
        return found

    monkeypatch.setattr(callback.RunCallback, "evaluate", drawing)
    train(make_recipe(bert, tmp_path, epochs=1), tmp_path / "run")
    assert states == [True]


def test_a_second_process_on_a_run_directory_is_refused_by_name(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path)
    script = (
        "import fcntl, os, sys, time\n"
        "held = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); fcntl.flock(held, fcntl.LOCK_EX)\n"
        "os.write(held, b'process 7 on elsewhere'); print('held', flush=True); time.sleep(60)"
    )
    (tmp_path / "run").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run" / ".lock")], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(OutputError, match="process 7 on elsewhere is working on this run"):
                train(recipe, tmp_path / "run", **options)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
        other.kill()
    train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


def test_two_runs_that_begin_together_do_not_mix(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path)
    refused = []

    def begin_another() -> None:
        with pytest.raises(OutputError, match=f"process {os.getpid()} on .* is working on this run") as fault:
            train(recipe, tmp_path / "run", overwrite=True)
        refused.append(fault)

    train(recipe, tmp_path / "run", display=At(2, begin_another))
    assert refused
    assert evaluate(tmp_path / "run")


def test_a_full_disk_ends_a_run_with_a_message_and_it_goes_on_when_there_is_room(bert, tmp_path, monkeypatch):
    recipe = make_recipe(bert, tmp_path, method={"dropout": 0.2}, epochs=3)
    whole = files(train(recipe, tmp_path / "whole"))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "optimizer.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr("kasatune.training.engines.run_trainer.save_optimizer", full)
        patch.setattr(callback, "SAVE_SECONDS", 600.0)
        with pytest.raises(WorkError, match=r"No space left on device.*optimizer\.safetensors"):
            train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()
    train(recipe, tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == whole


def test_other_rows_than_the_run_was_begun_with_are_refused_and_it_goes_on_with_the_right_ones(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, method={"dropout": 0.2}, epochs=3)
    whole = files(train(recipe, tmp_path / "whole"))
    stopped(recipe, tmp_path / "run")
    path = tmp_path / "train.csv"
    before = path.read_bytes()
    write_csv(path, rows(24, 2, seed=9))
    with pytest.raises(DataError, match="started with other rows; restore them, or start again with --overwrite"):
        train(recipe, tmp_path / "run", resume=True)
    path.unlink()
    with pytest.raises(DataError, match=r"train\.csv"):
        train(recipe, tmp_path / "run", resume=True)
    path.write_bytes(before)
    train(recipe, tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == whole


@pytest.fixture
def nobody_answers_sigterm():
    """Ray, for one, answers it from then on in every process that it was used in."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("nobody_answers_sigterm")
def test_a_request_to_terminate_stops_like_ctrl_c(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, method={"dropout": 0.2}, epochs=3)
    whole = files(train(recipe, tmp_path / "whole"))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=At(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert signal.getsignal(signal.SIGTERM) is before
    assert evaluate(tmp_path / "run")["metrics"]
    train(recipe, tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == whole


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_at_once_and_the_state_before_is_there(value, bert, tmp_path, monkeypatch):
    from kasatune.training.engines import trainer

    whole, calls = trainer.mean_loss, []

    def broken(outputs, labels, num_items_in_batch=None):
        calls.append(0)
        loss = whole(outputs, labels, num_items_in_batch)
        return loss * value if len(calls) == 5 else loss

    monkeypatch.setattr(trainer, "mean_loss", broken)
    with pytest.raises(DivergedError, match=r"the loss \((nan|-?inf)\) is not finite at step 5; the last good state"):
        train(make_recipe(bert, tmp_path), tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["diverged"] is True and metrics["stopped_at"] == 4
    assert evaluate(tmp_path / "run")["metrics"] == metrics["selected"]["metrics"]


@pytest.mark.parametrize("method", ["full", "kasa"])
def test_weights_that_make_the_loss_nan_are_not_the_ones_that_are_kept(method, bert, tmp_path):
    rates = {"learning_rate": 1e25, "warmup_ratio": 0.0, "schedule": "constant"}
    with pytest.raises(DivergedError, match=r"the loss \(nan\) is not finite at step 2; the last good state is kept"):
        train(make_recipe(bert, tmp_path, method={"name": method}, **rates), tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["stopped_at"] == 1 and metrics["selected"]["step"] == 0
    assert evaluate(tmp_path / "run")["metrics"]


def test_a_step_beyond_what_a_float_holds_is_a_divergence(bert, tmp_path):
    rates = {"learning_rate": 1e38, "warmup_ratio": 0.0, "schedule": "constant"}
    with pytest.raises(DivergedError, match="the optimizer's step is not finite at step 1; the last good state"):
        train(make_recipe(bert, tmp_path, method={"name": "full"}, **rates), tmp_path / "run")
    assert evaluate(tmp_path / "run")["metrics"]


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(bert, tmp_path, monkeypatch):
    from kasatune.training.engines import trainer

    whole = trainer.MeanLossTrainer.training_step

    def broken(self, model, *rest):
        loss = whole(self, model, *rest)
        for name, parameter in model.named_parameters():
            if name.endswith("layer.1.attention.self.query.kasa_B.default") and self.state.global_step == 1:
                parameter.grad[0, 0] = float("nan")
        return loss

    monkeypatch.setattr(trainer.MeanLossTrainer, "training_step", broken)
    with pytest.raises(DivergedError, match="the gradient is not finite at step 2; the last good state is kept"):
        train(make_recipe(bert, tmp_path), tmp_path / "run")
    assert evaluate(tmp_path / "run")["metrics"]

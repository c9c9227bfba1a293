"""Runs on several processes (gloo, CPU): equal to one process for any sharding, and resumable by any number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kasatune.distributed.fsdp import sharding_requested
from kasatune.errors import InputError
from kasatune.evaluation.evaluate import evaluate
from kasatune.recipes.schema import load_recipe, to_yaml
from kasatune.training.train import train
from tests import processes
from tests.processes import together
from tests.toys import Recorder, make_recipe

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs PyTorch with torch.distributed")

LIMIT = 1e-5
STOPPED_AT = 6


@pytest.fixture(scope="module")
def recipe(bert, tmp_path_factory):
    """27 rows in steps of 8, each of two pieces: in the last step of an epoch are 3, fewer than four processes."""
    folder = tmp_path_factory.mktemp("processes")
    made = make_recipe(
        bert,
        folder,
        train=27,
        model_options={"dropout": 0},
        method={"gamma": 0.1, "beta": 0.1},
        gradient_accumulation=2,
        weight_decay=0.01,
        max_grad_norm=1.0,
    )
    (folder / "recipe.yaml").write_text(to_yaml(made), encoding="utf-8")
    return str(folder / "recipe.yaml")


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    return train(load_recipe(recipe), tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="module")
def stopped(recipe, tmp_path_factory):
    """A run that two processes with a sharded model were stopped in."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    together(2, processes.stop_sharded, recipe, str(out), STOPPED_AT - 1)
    return out


def curve(run: Path) -> list[float]:
    events = [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event["loss"] for event in events if event["event"] == "train"]


def assert_same(run: Path, alone: Path) -> None:
    """Loss curve, scores and the saved adapter."""
    assert curve(run) == pytest.approx(curve(alone), abs=LIMIT)
    found, wanted = (json.loads((one / "metrics.json").read_text(encoding="utf-8")) for one in (run, alone))
    assert found["metrics"] == pytest.approx(wanted["metrics"], abs=LIMIT)
    assert found["last"]["step"] == wanted["last"]["step"]
    for name in ("kasa", "adapter"):
        ours, theirs = (load_file(one / name / "adapter_model.safetensors") for one in (run, alone))
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            torch.testing.assert_close(ours[key], tensor, atol=LIMIT, rtol=0)
    assert not (run / "unfinished").exists()
    assert evaluate(run)["metrics"] == pytest.approx(found["metrics"], abs=1e-7)


def test_two_processes_give_what_one_gives_and_decompose_each_weight_once(recipe, alone, tmp_path):
    together(2, processes.count_decompositions, recipe, str(tmp_path / "run"), str(tmp_path))
    assert_same(tmp_path / "run", alone)
    assert [int((tmp_path / rank).read_text()) for rank in "01"] == [2, 2]


def test_two_processes_with_a_sharded_model_give_what_one_gives(recipe, alone, tmp_path):
    together(2, processes.train_sharded, recipe, str(tmp_path / "run"))
    assert_same(tmp_path / "run", alone)


def test_what_activations_choose_is_the_same_in_a_sharded_model(bert, tmp_path):
    chosen = {"name": "akasa", "drop": 2}
    recipe = make_recipe(bert, tmp_path, train=16, model_options={"dropout": 0}, method=chosen, epochs=1)
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    together(2, processes.train_sharded, str(tmp_path / "recipe.yaml"), str(tmp_path / "two"))
    assert_same(tmp_path / "two", train(recipe, tmp_path / "one"))


def test_routers_are_balanced_over_all_processes(bert, tmp_path):
    recipe = make_recipe(
        bert, tmp_path, train=27, model_options={"dropout": 0}, method={"name": "moe-lora"}, gradient_accumulation=2
    )
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    together(2, processes.train, str(tmp_path / "recipe.yaml"), str(tmp_path / "two"))
    assert curve(tmp_path / "two") == pytest.approx(curve(train(recipe, tmp_path / "one")), abs=LIMIT)


def test_four_processes_go_on_where_two_with_a_sharded_model_stopped(recipe, alone, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    assert len(curve(stopped)) == STOPPED_AT
    (last,) = (stopped / "unfinished").glob(f"checkpoint-{STOPPED_AT}")
    trained = sum(tensor.numel() for tensor in load_file(last / "model.safetensors").values())
    moments = sum(tensor.numel() for tensor in load_file(last / "optimizer.safetensors").values() if tensor.ndim)
    assert moments == 2 * trained
    together(4, _resume, recipe, str(tmp_path / "run"))
    assert_same(tmp_path / "run", alone)


def test_one_process_goes_on_where_two_with_a_sharded_model_stopped(recipe, alone, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    display = Recorder()
    train(load_recipe(recipe), tmp_path / "run", resume=True, display=display)
    assert display.steps == list(range(STOPPED_AT + 1, 9))
    assert any("written by 2 processes and is resumed by 1" in message for message in display.messages)
    assert_same(tmp_path / "run", alone)


def test_a_loss_that_is_not_finite_in_one_process_ends_all_with_the_good_state(recipe, tmp_path):
    together(2, processes.diverge, recipe, str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))["diverged"] is True


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [("FSDP_VERSION", "1", "--fsdp_version 2"), ("ACCELERATE_USE_DEEPSPEED", "true", "both true.*unset the other")],
)
def test_what_cannot_shard_is_refused(name, value, remedy, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name}.*{remedy}"):
        sharding_requested()


def _resume(recipe: str, out: str) -> None:
    processes.train_sharded(recipe, out, resume=True)

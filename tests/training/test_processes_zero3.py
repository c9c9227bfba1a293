"""Runs by DeepSpeed's ZeRO-3 on several processes (gloo, CPU): equal to one process, and resumable by any number."""

from __future__ import annotations

import importlib.util
import json
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kasatune.errors import InputError, RecipeError
from kasatune.recipes.schema import load_recipe, to_yaml
from kasatune.training.deepspeed_config import apply_recipe
from kasatune.training.train import train
from tests import processes
from tests.processes import together
from tests.toys import Recorder, make_recipe
from tests.training.test_processes import LIMIT, STOPPED_AT, assert_same, curve

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or importlib.util.find_spec("deepspeed") is None,
    reason="needs torch.distributed and the extra deepspeed",
)


@pytest.fixture(scope="module")
def recipe(bert, tmp_path_factory):
    """27 rows in steps of 8, each of two pieces: in the last step of an epoch are 3, fewer than four processes."""
    folder = tmp_path_factory.mktemp("zero3")
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
    """A run that two processes were stopped in."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    together(2, processes.stop_dealt_out, recipe, str(out), STOPPED_AT - 1)
    return out


def test_four_processes_go_on_where_two_stopped(recipe, alone, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    assert curve(stopped) == pytest.approx(curve(alone)[:STOPPED_AT], abs=LIMIT)
    (last,) = (stopped / "unfinished").glob(f"checkpoint-{STOPPED_AT}")
    trained = sum(tensor.numel() for tensor in load_file(last / "model.safetensors").values())
    moments = sum(tensor.numel() for tensor in load_file(last / "optimizer.safetensors").values() if tensor.ndim)
    assert moments == 2 * trained
    together(4, _resume, recipe, str(tmp_path / "run"))
    assert_same(tmp_path / "run", alone)


def test_one_process_goes_on_where_two_stopped(recipe, alone, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    display = Recorder()
    train(load_recipe(recipe), tmp_path / "run", resume=True, display=display)
    assert display.steps == list(range(STOPPED_AT + 1, 9))
    assert_same(tmp_path / "run", alone)


def test_a_loss_that_is_not_finite_in_one_process_ends_all_with_the_good_state(recipe, tmp_path):
    together(2, processes.diverge_dealt_out, recipe, str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))["diverged"] is True
    saved = load_file(tmp_path / "run" / "kasa" / "adapter_model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in saved.values())


def test_instructions_give_what_one_process_gives(llama, tmp_path):
    pytest.importorskip("trl")
    from tests.training.test_instruction_runs import recipe
    from tests.training.test_processes_text import assert_same

    made = recipe(llama, tmp_path / "data", number=19, method={"gamma": 0.1, "beta": 0.1})
    (tmp_path / "recipe.yaml").write_text(to_yaml(made))
    alone = train(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "alone")
    together(2, processes.train_dealt_out, str(tmp_path / "recipe.yaml"), str(tmp_path / "run"))
    assert_same(tmp_path / "run", alone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "bfloat16"}, "training.precision: bfloat16: .*use float32, or shard with FSDP2"),
        ({"gradient_checkpointing": True}, "training.gradient_checkpointing: true: .*use false"),
        ({"method": {"name": "adalora"}}, "method.name: adalora accesses its parameters between steps"),
    ],
)
def test_what_zero3_cannot_train_is_refused_before_anything_is_written(bert, tmp_path, monkeypatch, changes, message):
    made = make_recipe(bert, tmp_path / "data", **changes)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=message):
        train(made, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_process_alone_is_refused(bert, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match="with one process"):
        train(make_recipe(bert, tmp_path / "data"), tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero_optimization": {"stage": 2}}, "ZeRO stage 2: give stage 3"),
        ({"zero_optimization": {"stage": 3}, "optimizer": {"type": "Adam"}}, "optimizer: the recipe decides it"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}, "offload_optimizer: .*remove it"),
    ],
)
def test_settings_against_the_recipe_are_refused(settings, message):
    arguments: Any = SimpleNamespace(deepspeed_plugin=SimpleNamespace(deepspeed_config=settings))
    section: Any = None
    with pytest.raises(RecipeError, match=message):
        apply_recipe(arguments, section)


def _resume(recipe: str, out: str) -> None:
    processes.train_dealt_out(recipe, out, resume=True)

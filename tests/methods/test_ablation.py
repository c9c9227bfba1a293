"""Ablations of KaSA: without truncation, without sigma, and without both."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from kasatune.data.tasks import load_task
from kasatune.evaluation.evaluate import evaluate
from kasatune.evaluation.task_model import TaskModel
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.models.load import load_base
from kasatune.training.train import train
from tests.toys import make_bert, make_recipe


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return make_bert(tmp_path_factory.mktemp("models") / "bert")


def prepared(bert, folder, **method):
    recipe = make_recipe(bert, folder, method={"name": "kasa", **method})
    data = load_task(recipe.task)
    made = TaskModel.for_training(recipe, data)
    return made, made.logits(made.encode(data, "validation"))


def test_without_truncation_it_starts_as_the_base(bert, tmp_path):
    whole, logits = prepared(bert, tmp_path, options={"truncate": False})
    _, cut = prepared(bert, tmp_path)
    assert (logits == prepared(bert, tmp_path, name="lora")[1]).all()
    assert not (logits == cut).all()
    assert any(name.endswith("kasa_sigma.default") for name in trainable(whole.model))


@pytest.mark.parametrize("core", ["diagonal", "dense"])
def test_sigma_at_one_is_the_identity_and_is_not_trained(core, bert, tmp_path):
    run = train(
        make_recipe(bert, tmp_path, method={"core": core, "options": {"sigma": "one"}}, max_steps=2), tmp_path / "run"
    )
    tensors = load_file(run / "kasa" / "adapter_model.safetensors")
    sigmas = [tensor for name, tensor in tensors.items() if "kasa_sigma" in name]
    assert sigmas and all(torch.equal(s, torch.ones(2) if core == "diagonal" else torch.eye(2)) for s in sigmas)
    moved = [tensor for name, tensor in tensors.items() if "kasa_B" in name]
    assert all(tensor.abs().max() > 0 for tensor in moved)


def test_without_both_and_without_penalties_it_trains_as_many_parameters_as_lora(bert, tmp_path):
    ablated, _ = prepared(bert, tmp_path, beta=0.0, gamma=0.0, options={"truncate": False, "sigma": "one"})
    lora, _ = prepared(bert, tmp_path, name="lora")
    assert ablated.parameter_counts() == lora.parameter_counts()


@pytest.mark.parametrize("truncation", ["attach", "fold"])
@pytest.mark.parametrize("sigma", ["trained", "one"])
def test_without_truncation_only_the_adapter_is_trained(sigma, truncation, bert, tmp_path):
    options = {"truncate": False, "sigma": sigma}
    ablated, _ = prepared(bert, tmp_path, truncation=truncation, options=options)
    assert all("kasa_" in name for name in trainable(ablated.model) if "classifier" not in name)
    counted, _ = ablated.parameter_counts()
    recipe = ablated.recipe
    base = load_base(recipe.model, kind="classification", label_names=("a", "b"), seed=0, max_length=16)
    assert counted == ablated.method.trained_parameters(base.model, recipe.method, "classification", base.new_modules)


@pytest.mark.parametrize("truncation", ["attach", "fold"])
def test_an_ablated_run_repeats_its_scores_from_its_files(truncation, bert, tmp_path):
    method = {"truncation": truncation, "options": {"truncate": False}}
    run = train(make_recipe(bert, tmp_path, method=method, max_steps=3), tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert evaluate(run)["metrics"] == metrics["metrics"]
    assert [layer["dropped"][1] for layer in json.loads((run / "spectrum.json").read_text())["layers"]] == [0] * 4

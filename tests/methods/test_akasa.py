"""The method `akasa`: its settings in a recipe, its calibration, and a run that is resumed."""

from __future__ import annotations

import json

import pytest
import torch

from kasatune import KasaConfig, methods
from kasatune.data.tasks import load_task
from kasatune.errors import RecipeError
from kasatune.evaluation.evaluate import evaluate
from kasatune.evaluation.task_model import TaskModel
from kasatune.kasa import KasaLayer
from kasatune.recipes.schema import MethodSection, Recipe
from kasatune.training.train import train
from tests.text_toys import make_text_recipe
from tests.toys import At, make_bert, make_recipe


def prepared(recipe):
    """The model before its first step."""
    data = load_task(recipe.task)
    task_model = TaskModel.for_training(recipe, data)
    batches = task_model.batches(task_model.encode(data, "train"))
    task_model.method.prepare(task_model.model.eval(), recipe.method, batches)
    return task_model.model


def layers(model):
    return [module for module in model.modules() if isinstance(module, KasaLayer)]


def used(model):
    return model.peft_config["default"].calibration_used


def test_a_language_model_generates_its_calibration_text(llama, tmp_path):
    model = prepared(make_text_recipe(llama, tmp_path, method={"name": "akasa"}))
    assert (used(model)["source"], used(model)["seed"]) == ("generated", 0)
    for layer in layers(model):
        A, K = layer.kasa_A["default"], layer.protected["default"].float()
        assert K.shape == (32, 1)  # 2 % of 32 directions
        assert (A @ K).norm() < 1e-3 * A.norm()
        assert torch.equal(layer.kasa_sigma["default"].data, torch.ones(2))
        assert layer.settings["default"].drop == 0


def test_the_configuration_of_the_tuner_is_that_of_the_method():
    section = MethodSection(name="akasa", r=4, alpha=8, target_modules=["q_proj"])
    of_the_method = methods.load("akasa").config(section, ["q_proj"], {"task_type": "CAUSAL_LM"})
    config = KasaConfig.akasa(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert config.to_dict() == of_the_method.to_dict()
    assert config.needs_activations


def test_a_classifier_is_calibrated_on_its_training_rows(tmp_path):
    recipe = make_recipe(make_bert(tmp_path / "bert"), tmp_path / "data", method={"name": "akasa", "drop": 2})
    model = prepared(recipe)
    assert used(model)["source"] == "task"
    assert all(layer.kasa_tail_U["default"].any() for layer in layers(model))


def test_task_rows_can_be_chosen_and_kasa_takes_the_same_keys(llama, tmp_path):
    method = {"name": "kasa", "truncate_by": "activation", "drop": 1, "protect": 0.1, "calibration": "task"}
    model = prepared(make_text_recipe(llama, tmp_path, method=method))
    assert used(model)["source"] == "task"
    assert {layer.protected["default"].shape[1] for layer in layers(model)} == {4}
    assert {layer.settings["default"].tail_width for layer in layers(model)} == {1}


@pytest.mark.parametrize("wrong", [{"protect": 1.5}, {"drop": -1}, {"calibration": "books"}, {"truncate_by": "size"}])
def test_settings_out_of_range_are_refused(llama, tmp_path, wrong):
    with pytest.raises(RecipeError, match=f"method.{next(iter(wrong))}"):
        make_text_recipe(llama, tmp_path, method={"name": "akasa", **wrong})


def test_a_recipe_without_the_new_keys_is_written_as_before(llama, tmp_path):
    written = make_text_recipe(llama, tmp_path).model_dump()["method"]
    assert not {"truncate_by", "drop", "protect", "calibration"} & set(written)
    given = make_text_recipe(llama, tmp_path, method={"protect": 0.1}).model_dump()
    assert given["method"]["protect"] == 0.1
    assert Recipe.model_validate(given).method.protect == 0.1


def interrupt():
    raise KeyboardInterrupt


def test_a_resumed_run_ends_as_an_uninterrupted_one(llama, tmp_path):
    recipe = make_text_recipe(llama, tmp_path / "data", method={"name": "akasa", "drop": 1}, epochs=3)
    straight = train(recipe, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "resumed", display=At(7, interrupt))
    resumed = train(recipe, tmp_path / "resumed", resume=True)

    first, second = (json.loads((run / "metrics.json").read_text()) for run in (straight, resumed))
    assert first["metrics"] == second["metrics"]
    assert first["start"] == second["start"]
    for name in ("adapter", "kasa"):
        weights = [(run / name / "adapter_model.safetensors").read_bytes() for run in (straight, resumed)]
        assert weights[0] == weights[1]


def test_an_ablation_without_truncation_drops_nothing_by_activation_either(llama, tmp_path):
    method = {"name": "kasa", "truncate_by": "activation", "drop": 1, "options": {"truncate": False}}
    model = prepared(make_text_recipe(llama, tmp_path, method=method))
    assert not any(layer.kasa_tail_U["default"].any() for layer in layers(model))


def test_sensitivity_reads_labelled_training_rows_and_a_run_reloads_its_tails(llama, tmp_path):
    method = {"name": "kasa", "truncate_by": "sensitivity", "calibration": {"source": "task", "rows": 12}}
    run = train(make_text_recipe(llama, tmp_path, method=method, epochs=1), tmp_path / "run")
    used = json.loads((run / "kasa" / "adapter_config.json").read_text())["calibration_used"]
    assert used["source"] == "task"
    length = min(used["losses"], key=lambda tried: (used["losses"][tried], int(tried)))
    assert sum(entry["dropped"] for entry in used["layers"].values()) == int(length)
    first, again = json.loads((run / "metrics.json").read_text())["metrics"], evaluate(run)["metrics"]
    assert first == again


@pytest.mark.parametrize("source", ["generated", {"source": "generated"}])
def test_sensitivity_on_text_without_labels_is_refused(llama, tmp_path, source):
    with pytest.raises(RecipeError, match=r"method\.calibration.*needs the labels of training rows"):
        make_text_recipe(llama, tmp_path, method={"truncate_by": "sensitivity", "calibration": source})

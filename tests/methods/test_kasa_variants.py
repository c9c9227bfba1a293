"""KaSA with `anneal` (the dropped component fades back in) and `orthonormal` (A and B stay orthonormal)."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from kasatune import methods
from kasatune.errors import InputError, RecipeError
from kasatune.kasa.layer import kasa_layers
from kasatune.training.train import train
from tests.methods.toys import classifier, settings
from tests.text_toys import make_text_recipe
from tests.toys import At, make_recipe

INPUTS = {"input_ids": torch.tensor([[2, 5, 6, 9, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}


def logits(model):
    with torch.no_grad():
        return model.eval()(**INPUTS).logits


def still(bert):
    """The base without dropout."""
    return classifier(bert, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def attached(bert, name="kasa", **values):
    method, section = methods.load(name), settings(name, **values)
    model = method.attach(still(bert), section, "classification", ["classifier"]).eval()
    method.prepare(model, section, [{**INPUTS, "labels": torch.tensor([0])}])
    return model, method, section


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("truncation", ["attach", "fold"])
def test_the_component_fades_back_in_during_its_share_of_the_steps(truncation, bert):
    base = logits(classifier(bert))
    truncated = logits(attached(bert, truncation=truncation)[0])
    model, method, section = attached(bert, truncation=truncation, anneal=0.5)
    torch.testing.assert_close(logits(model), base)
    (callback,) = method.callbacks(model, section)
    distances = []
    for step in range(8):
        state = SimpleNamespace(global_step=step, max_steps=8)
        callback.on_step_begin(None, state, None)
        distances.append(float((logits(model) - base).norm() / (truncated - base).norm()))
        callback.on_step_end(None, state, None)
        torch.testing.assert_close(logits(model), base)
    assert distances == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0, 0, 0], abs=0.1)
    assert {layer.settings["default"].drop for _, layer in kasa_layers(model)} == {0}


def test_an_annealed_run_gives_a_lora_of_rank_r(bert, tmp_path):
    run = train(make_recipe(bert, tmp_path / "data", method={"anneal": 0.5}), tmp_path / "run")
    for folder, key, value in (("adapter", "r", 2), ("kasa", "drop", 0)):
        assert json.loads((run / folder / "adapter_config.json").read_text())[key] == value


def test_fading_changes_what_is_learned(bert, tmp_path):
    weights = []
    for number, method in enumerate(({"anneal": 1.0}, {"anneal": 0.1}, {"drop": 0})):
        recipe = make_recipe(bert, tmp_path / str(number), method=method, select="last")
        run = train(recipe, tmp_path / f"run{number}")
        weights.append((run / "adapter" / "adapter_model.safetensors").read_bytes())
    assert len(set(weights)) == 3


@pytest.mark.parametrize(
    "method",
    [
        {"name": "kasa", "anneal": 0.9},
        {"name": "akasa", "drop": 1, "anneal": 0.9},
        {"name": "akasa", "orthonormal": True, "init": "gradient"},
    ],
    ids=["kasa-anneal", "akasa-anneal", "akasa-orthonormal-gradient"],
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(method, llama, tmp_path):
    recipe = make_text_recipe(llama, tmp_path / "data", method=method, epochs=3)
    straight = train(recipe, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "resumed", display=At(7, interrupt))
    resumed = train(recipe, tmp_path / "resumed", resume=True)
    first, second = (json.loads((run / "metrics.json").read_text()) for run in (straight, resumed))
    assert first["metrics"] == second["metrics"]
    for folder in ("adapter", "kasa"):
        weights = [(run / folder / "adapter_model.safetensors").read_bytes() for run in (straight, resumed)]
        assert weights[0] == weights[1]


def test_an_orthonormal_run_starts_at_the_base(bert):
    for name in ("kasa", "akasa"):
        model, _, _ = attached(bert, name, orthonormal=True, drop=0)
        torch.testing.assert_close(logits(model), logits(classifier(bert)))
        for _, layer in kasa_layers(model):
            A, sigma, B = layer.factors("default")
            torch.testing.assert_close(A @ A.T, torch.eye(2), atol=1e-5, rtol=0)
            torch.testing.assert_close(B.T @ B, torch.eye(2), atol=1e-5, rtol=0)
            assert not sigma.any()


@pytest.mark.parametrize("orthonormal", [False, True])
def test_a_start_from_the_gradient_is_the_base_still(orthonormal, bert):
    section = {"drop": 0, "orthonormal": orthonormal, "init": "gradient"}
    model, _, _ = attached(bert, **section)
    torch.testing.assert_close(logits(model), logits(classifier(bert)))
    base = still(bert)
    base(**INPUTS, labels=torch.tensor([0])).loss.backward()
    for name, layer in kasa_layers(model):
        A, _, B = layer.factors("default")
        torch.testing.assert_close(A @ A.T, torch.eye(2), atol=1e-4, rtol=0)
        if not name.endswith("layer.1.attention.self.value"):
            continue  # the gradients of queries have one singular value only, which rounds
        gradient = base.get_submodule(name).weight.grad
        U, _, Vh = torch.linalg.svd(gradient)
        assert float((A @ Vh[0]).norm()) == pytest.approx(1, abs=1e-3)
        assert float((B.T @ U[:, 0]).norm()) == pytest.approx(float(orthonormal), abs=1e-3)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("akasa", {"anneal": 0.5}, r"method.anneal: 0.5 received; nothing is dropped"),
        ("kasa", {"anneal": 0.5, "drop": 0}, r"nothing is dropped"),
        ("kasa", {"anneal": 0.5, "options": {"truncate": False}}, r"nothing is dropped"),
        ("kasa", {"orthonormal": True, "options": {"sigma": "one"}}, r"method.orthonormal: true received"),
    ],
)
def test_settings_that_contradict_are_refused_before_a_weight_is_read(name, values, message, bert):
    method, section = methods.load(name), settings(name, **values)
    for work in (method.attach, method.trained_parameters):
        with pytest.raises(InputError, match=message):
            work(classifier(bert), section, "classification", ["classifier"])


@pytest.mark.parametrize("wrong", [{"anneal": 1.5}, {"anneal": -0.1}, {"orthonormal": "yes"}, {"init": "zero"}])
def test_settings_out_of_range_are_refused(bert, tmp_path, wrong):
    with pytest.raises(RecipeError, match=f"method.{next(iter(wrong))}"):
        make_recipe(bert, tmp_path, method=wrong)


def test_a_recipe_without_the_keys_is_written_as_before(bert, tmp_path):
    assert not {"anneal", "orthonormal", "init"} & set(make_recipe(bert, tmp_path).model_dump()["method"])

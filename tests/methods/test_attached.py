"""Attaching, saving and loading of every method."""

from __future__ import annotations

import json

import pytest
import torch

from kasatune import methods
from kasatune.errors import AdapterError, ModelError
from kasatune.methods.shared.model_parts import head_name
from kasatune.methods.shared.trained_parameters import trainable
from tests.methods.toys import classifier, settings

GRADIENT = [name for name in methods.METHODS if name != "head"]
INPUTS = {
    "input_ids": torch.tensor([[2, 5, 6, 9, 3], [2, 7, 8, 3, 0]]),
    "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 1, 0]]),
}


def attach(name, model, **values):
    return methods.load(name).attach(model, settings(name, **values), "classification", ["classifier"])


def shaken(model):
    """The model with every trained parameter changed, as training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("name", GRADIENT)
def test_loading_restores_the_logits(name, bert, tmp_path):
    method, model = methods.load(name), shaken(attach(name, classifier(bert)))
    method.save(model, tmp_path, "some/base")
    again = method.load(classifier(bert), tmp_path, settings(name)).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**INPUTS).logits, model(**INPUTS).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*GRADIENT, "head"])
def test_missing_or_truncated_files_raise_adapter_error(name, bert, tmp_path):
    method = methods.load(name)
    with pytest.raises(AdapterError, match="run directory"):
        method.load(classifier(bert), tmp_path, settings(name))
    if name == "head":
        return
    method.save(attach(name, classifier(bert)), tmp_path, "some/base")
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(AdapterError):
        method.load(classifier(bert), tmp_path, settings(name))


def test_bitfit_trains_only_the_biases_and_the_head(bert):
    model = classifier(bert)
    names = set(trainable(attach("bitfit", model)))
    every = {name for name, _ in model.named_parameters()}
    assert names == {name for name in every if name.endswith(".bias")} | {"classifier.weight"}
    assert "bert.encoder.layer.0.output.LayerNorm.bias" in names


def test_bitfit_refuses_a_model_without_biases(tmp_path):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=13, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, pad_token_id=0
    )
    with pytest.raises(ModelError, match="has none outside its head"):
        methods.load("bitfit").attach(
            LlamaForSequenceClassification(config), settings("bitfit"), "classification", ["score"]
        )


def test_bitfit_refuses_to_load_on_another_base(bert, tmp_path):
    method = methods.load("bitfit")
    method.save(attach("bitfit", classifier(bert)), tmp_path, "some/base")
    with pytest.raises(AdapterError, match=r"classifier.* has shape \(2.*the base model has shape \(5"):
        method.load(classifier(bert, labels=5), tmp_path, settings("bitfit"))


def test_full_trains_everything_and_needs_no_base(bert, tmp_path):
    model = classifier(bert)
    assert len(trainable(attach("full", model))) == len(list(model.parameters()))
    methods.load("full").save(shaken(model), tmp_path, "some/base")
    assert json.loads((tmp_path / "checkpoint" / "config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]


@pytest.mark.parametrize("name", ["kasa", "peft-kasa", "lora"])
class TestAdapters:
    def test_targets_are_query_and_value_by_default(self, name, bert):
        model = attach(name, classifier(bert))
        assert {layer.rsplit(".", 1)[1] for layer in model.base_model.targeted_module_names} == {"query", "value"}

    def test_all_linear_does_not_adapt_new_modules(self, name, bert):
        model = methods.load(name).attach(
            classifier(bert),
            settings(name, target_modules="all-linear"),
            "classification",
            ["bert.pooler", "classifier"],
        )
        assert not [
            layer for layer in model.base_model.targeted_module_names if "pooler" in layer or "classifier" in layer
        ]
        whole = [key for key in trainable(model) if "modules_to_save" in key]
        assert sorted(key.split(".modules_to_save.default")[0].rsplit("model.", 1)[1] for key in whole) == [
            *("bert.pooler", "bert.pooler", "classifier", "classifier")
        ]

    def test_a_target_that_matches_nothing_is_named(self, name, bert):
        with pytest.raises(ModelError, match="quarry"):
            attach(name, classifier(bert), target_modules=["query", "quarry"])
        with pytest.raises(ModelError, match="nothing_like_it"):
            attach(name, classifier(bert), target_modules="nothing_like_it")

    def test_the_saved_configuration_holds_the_base_and_the_settings(self, name, bert, tmp_path):
        method = methods.load(name)
        model = attach(name, classifier(bert), r=3, alpha=5, dropout=0.25, use_rslora=True)
        method.save(model, tmp_path, "package:thing")
        config = json.loads((tmp_path / method.folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "package:thing"
        assert (config["r"], config["lora_alpha"], config["lora_dropout"], config["use_rslora"]) == (3, 5, 0.25, True)
        assert config["target_modules"] == ["query", "value"]
        certificate = ["certificate.json"] if name == "kasa" else []
        assert {path.name for path in (tmp_path / method.folder).iterdir()} == {
            *("adapter_config.json", "adapter_model.safetensors", *certificate)
        }


def test_kasa_settings_reach_the_adapter(bert):
    values = {"convention": "authors", "core": "dense", "truncation": "fold", "beta": 0.25, "gamma": 0.5}
    config = attach("kasa", classifier(bert), **values).peft_config["default"]
    assert {key: getattr(config, key) for key in values} == values
    assert config.penalty == "step"


def test_a_dense_core_is_shown_by_its_singular_values(bert):
    model = attach("kasa", classifier(bert), core="dense", r=3)
    shown = methods.load("kasa").singular_values(model)
    for name, values in shown.items():
        core = dict(model.named_modules())[f"base_model.model.{name}"].kasa_sigma["default"]
        assert values == pytest.approx(torch.linalg.svdvals(core.double()).tolist(), rel=1e-5)


def test_head_name_is_the_last_module_besides_the_body(bert):
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    assert head_name(classifier(bert)) == "classifier"
    small = DistilBertConfig(vocab_size=13, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    assert head_name(DistilBertForSequenceClassification(small)) == "classifier"

"""Runs on quantized bases, and the configurations that load them."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForSequenceClassification

from kasatune.adapter_tools.export import convert_adapter
from kasatune.adapter_tools.verify import verify
from kasatune.errors import InputError, MissingExtraError
from kasatune.evaluation.evaluate import evaluate
from kasatune.evaluation.predict import predict
from kasatune.models.load import load_base
from kasatune.models.quantization import quantization_config
from kasatune.recipes.schema import ModelSection, Recipe
from kasatune.training.train import train
from tests.text_toys import make_llama, make_text_recipe
from tests.toys import make_bert, make_recipe

KINDS = {"nf4": "bitsandbytes", "int8": "bitsandbytes", "torchao-int8": "torchao"}


@pytest.fixture(scope="module")
def wide_bert(tmp_path_factory):
    """A BERT whose layers hold whole blocks of the 4-bit format."""
    return make_bert(tmp_path_factory.mktemp("models") / "bert", hidden_size=64, intermediate_size=128)


@pytest.fixture(params=KINDS)
def kind(request):
    if importlib.util.find_spec(KINDS[request.param]) is None:
        pytest.skip(f"{KINDS[request.param]} is not installed: pip install 'kasatune[quant]'")
    return request.param


def quantized_layers(model):
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (type(module) is not torch.nn.Linear or type(module.weight) is not torch.nn.Parameter)
    }


def test_the_body_is_quantized_and_what_is_newly_made_is_not(kind, wide_bert):
    base = load_base(
        ModelSection(name=str(wide_bert), quantization=kind),
        kind="classification",
        label_names=("no", "yes"),
        seed=0,
        max_length=16,
    )
    assert isinstance(base.model, BertForSequenceClassification)
    assert base.new_modules == ("classifier",)
    found = quantized_layers(base.model)
    assert len(found) == 12 and all(name.startswith("bert.encoder.layer.") for name in found)
    assert base.model.classifier.weight.dtype == torch.float32


@pytest.mark.parametrize("method", ["kasa", "lora"])
def test_a_run_on_a_quantized_base_learns_and_repeats_its_metrics(kind, method, wide_bert, tmp_path):
    recipe = make_recipe(
        wide_bert,
        tmp_path,
        train=96,
        validation=40,
        epochs=6,
        method={"name": method},
        model_options={"quantization": kind},
    )
    run = train(recipe, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    assert metrics["accuracy"] >= 0.65
    assert evaluate(run)["metrics"] == metrics
    assert len(predict(run, ["good fine", "bad sad"])) == 2
    events = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "train"]
    assert losses[-1] < losses[0]
    if method == "kasa":
        stored = json.loads((run / "kasa" / "adapter_config.json").read_text())
        assert stored["tail_source_used"] == "checkpoint"
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_a_run_on_a_quantized_base_is_verified_exported_and_merged(kind, wide_bert, tmp_path):
    recipe = make_recipe(wide_bert, tmp_path, train=32, validation=8, epochs=1, model_options={"quantization": kind})
    run = train(recipe, tmp_path / "run")
    record = convert_adapter(run, tmp_path / "lora", "lora")
    assert record["outputs"]["dtype"] == "quantized"
    assert record["outputs"]["largest_difference"] < 1e-4 * record["outputs"]["largest_output"]
    checks = {check.name: check for check in verify(run)}
    assert [check for check in checks.values() if check.passed is False] == []
    assert checks["base untouched"].passed and checks["export to lora"].passed and checks["merge"].passed
    assert "no KaSA on quantized layers" in checks["export to peft-kasa"].figure


@pytest.mark.parametrize("task", ["text-generation", "instruction"])
def test_text_is_learnt_on_a_4_bit_base_and_the_adapter_is_whole(task, tmp_path):
    pytest.importorskip("bitsandbytes", reason="pip install 'kasatune[quant]'")
    model = make_llama(tmp_path / "llama", hidden_size=64, intermediate_size=128)
    method = {"target_modules": "all-linear"}
    if task == "instruction":
        pytest.importorskip("trl", reason="pip install 'kasatune[sft]'")
        from tests.training.test_instruction_runs import recipe as instruction_recipe

        made = instruction_recipe(model, tmp_path / "data", method=method, max_steps=3)
    else:
        made = make_text_recipe(model, tmp_path / "data", method=method, max_steps=3)
    values = made.model_dump()
    recipe = Recipe.model_validate({**values, "model": {**values["model"], "quantization": "nf4"}})
    run = train(recipe, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    assert metrics["loss"] > 0 and evaluate(run)["metrics"] == metrics
    assert isinstance(predict(run, ["say red blue :"])[0]["prediction"]["text"], str)
    stock = load_file(run / "adapter" / "adapter_model.safetensors")
    native = load_file(run / "kasa" / "adapter_model.safetensors")
    parts = [*(f"self_attn.{one}_proj" for one in "qkvo"), *(f"mlp.{one}_proj" for one in ("gate", "up", "down"))]
    layers = [f"layers.{number}.{part}" for number in range(2) for part in parts]
    for layer in layers:
        a, b = (next(stock[name] for name in stock if f"{layer}.lora_{side}" in name) for side in "AB")
        assert a.shape[0] == b.shape[1] == 4 and a.isfinite().all() and b.isfinite().all()
        kept = {name.rpartition(".")[2] for name in native if f"{layer}." in name}
        assert kept >= {"kasa_A", "kasa_B", "kasa_sigma", "kasa_tail_U", "kasa_tail_V"}
    assert len(stock) == 2 * len(layers)
    # what is trained is held in float32, whatever a trainer thinks of quantized bases
    trained = [tensor for name, tensor in native.items() if name.endswith("kasa_A")]
    assert not any(torch.equal(tensor, tensor.bfloat16().float()) for tensor in trained)
    assert [check for check in verify(run) if check.passed is False] == []


def test_none_is_no_configuration():
    assert quantization_config("none") is None


def test_the_names_stand_for_what_they_say(kind):
    config = quantization_config(kind, keep=["classifier"], dtype=torch.bfloat16).to_dict()
    if kind == "nf4":
        assert config["load_in_4bit"] and config["bnb_4bit_quant_type"] == "nf4"
        assert config["bnb_4bit_compute_dtype"] == "bfloat16"
    elif kind == "int8":
        assert config["load_in_8bit"] and not config["load_in_4bit"]
    else:
        assert "Int8WeightOnlyConfig" in json.dumps(config["quant_type"])
    assert "classifier" in (config.get("llm_int8_skip_modules") or config.get("modules_to_not_convert"))


def test_another_name_and_a_missing_package_are_refused(monkeypatch):
    with pytest.raises(InputError, match="'int2' received; choose one of: none, nf4, int8, torchao-int8"):
        quantization_config("int2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"nf4 \(bitsandbytes\) .* pip install 'kasatune\[quant\]'"):
        quantization_config("nf4")

"""The authors' released code as a witness: numbers that it gave on a tiny classifier, where they are at hand."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

from kasatune import KasaConfig, regularization
from kasatune.kasa import KasaLayer
from tests.kasa.penalty_probe import trainable
from tests.shared_data import shared
from tests.witnesses.agreement import relative, trained_factors

SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),
)
NAMES = {"kasa_A": "lora_A.default.weight", "kasa_B": "lora_B.default.weight", "kasa_sigma": "lora_diag.default"}
ADAPTED = "base_model.model."
HEAD = "base_model.model.classifier.modules_to_save.default."


@pytest.fixture(scope="module")
def facts():
    return json.loads(shared("goldens/authors_query_value.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tensors():
    return load_file(shared("goldens/authors_query_value.safetensors"))


def start(facts, tensors, truncation="attach"):
    """Our model at the authors' start."""
    base = BertForSequenceClassification(BertConfig(**{key: facts["config"][key] for key in SIZES}))
    base.load_state_dict({k.removeprefix("base."): v for k, v in tensors.items() if k.startswith("base.")})
    config = KasaConfig(
        convention="authors",
        truncation=truncation,
        modules_to_save=["classifier"],
        **{key: facts[key] for key in ("r", "lora_alpha", "beta", "gamma", "target_modules")},
    )
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in trained_factors(model).items():
            parameter.copy_(tensors["init." + theirs(name)])
        for part in ("weight", "bias"):
            model.get_parameter(HEAD + part).copy_(tensors[f"init.{HEAD}{part}"])
    return model


def theirs(name):
    """Their name of one of our factors."""
    layer, part, _ = name.rsplit(".", 2)
    return f"{ADAPTED}{layer}.{NAMES[part]}"


@pytest.mark.parametrize("truncation", ["attach", "fold"])
def test_truncated_weights_and_first_logits(facts, tensors, truncation):
    model = start(facts, tensors, truncation)
    truncated = {k.removeprefix("truncated."): v for k, v in tensors.items() if k.startswith("truncated.")}
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, KasaLayer)}
    assert {f"{name}.base_layer.weight" for name in layers} == truncated.keys()
    for name, layer in layers.items():
        dropped = 0 if truncation == "fold" else layer.tail("default")
        assert relative(layer.base_layer.weight - dropped, truncated[f"{name}.base_layer.weight"]) < 1e-5
    with torch.no_grad():
        assert relative(model(input_ids=tensors["input_ids"]).logits, tensors["logits_init"]) < 1e-5


@pytest.mark.parametrize("truncation", ["attach", "fold"])
def test_twenty_steps(facts, tensors, truncation):
    model = start(facts, tensors, truncation).train()
    optimizer = torch.optim.AdamW(trainable(model), lr=facts["lr"], weight_decay=facts["weight_decay"])
    task_losses, penalties = [], []
    for _ in range(facts["steps"]):
        loss = model(input_ids=tensors["input_ids"], labels=tensors["labels"]).loss
        task_losses.append(loss.item())
        penalties.append(regularization(model).item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert task_losses == pytest.approx(facts["task_loss"], rel=1e-4)
    assert penalties == pytest.approx(facts["auxiliary_loss"], rel=1e-5)

    final = {k.removeprefix("final."): v for k, v in tensors.items() if k.startswith("final.")}
    for name, parameter in trained_factors(model).items():
        assert relative(parameter, final.pop(theirs(name))) < 1e-4, name
    for part in ("weight", "bias"):
        assert relative(model.get_parameter(HEAD + part), final.pop(HEAD + part)) < 1e-4
    assert not final
    with torch.no_grad():
        logits = model.eval()(input_ids=tensors["input_ids"]).logits
    assert relative(logits, tensors["logits_final"]) < 1e-4

    merged = model.merge_and_unload().state_dict()
    wanted = {k.removeprefix("merged."): v for k, v in tensors.items() if k.startswith("merged.")}
    assert merged.keys() == wanted.keys()
    for name, tensor in merged.items():
        assert relative(tensor, wanted[name]) < 1e-4, name

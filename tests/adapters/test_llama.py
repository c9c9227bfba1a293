"""Llamas, pretrained and random, trained for a few steps on text, in every format that can hold the result and back."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from kasatune import KasaConfig, export_adapter, load_adapter
from kasatune.errors import InputError
from tests.kasa.models import llama, token_ids
from tests.shared_data import shared

TEXT = (
    "Once upon a time there was a small robot who lived by the sea. Every morning it counted the boats. "
    "One day a boat did not come back, and the robot went out to look for it."
)
# What each reader decomposes again in float32 differs from our float64 decomposition by its rounding.
BOUNDS = {"lora": 1e-5, "kasa": 0.0, "peft-kasa": 5e-5, "authors": 5e-5}


@pytest.fixture(scope="module", params=["stories260K-hf", "babyllama-105-hf", "random weights"])
def trained(request, tmp_path_factory):
    """(folder of the base, token ids, adapted model, its logits), adapted where the authors' rule is the paper's."""
    if request.param == "random weights":
        folder = tmp_path_factory.mktemp("llama")
        llama().save_pretrained(folder)
        ids = token_ids(rows=1)
    else:
        folder = shared(f"models/{request.param}")
        ids = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt").input_ids
    base = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    # Square or taller layers: in the wider ones the authors' code drops nothing.
    config = KasaConfig(r=4, target_modules=["q_proj", "o_proj", "gate_proj", "up_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(8):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    return folder, ids, model, outputs(model, ids)


def outputs(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def distance(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("to", BOUNDS)
def test_there_and_back_again(trained, tmp_path, to):
    folder, ids, model, expected = trained
    export_adapter(model, tmp_path / "there", to=to)
    there = load_adapter(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "there")
    assert distance(outputs(there, ids), expected) <= BOUNDS[to]
    record = json.loads((tmp_path / "there" / "certificate.json").read_text())
    assert record["outputs"]["largest_difference"] <= record["outputs"]["limit"]
    if to == "lora":
        with pytest.raises(InputError, match="a LoRA adapter cannot be converted to"):
            export_adapter(tmp_path / "there", tmp_path / "back", to="kasa")
        return
    base = AutoModelForCausalLM.from_pretrained(folder)
    export_adapter(tmp_path / "there", tmp_path / "back", to="kasa", base=base)
    back = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "back")
    assert distance(outputs(back, ids), expected) <= BOUNDS[to]
    assert (tmp_path / "back" / "certificate.json").is_file()


def test_greedy_tokens_are_those_of_the_trained_model_in_every_form(trained, tmp_path):
    folder, ids, model, _ = trained
    ids = ids[:, :6]
    expected = model.eval().generate(input_ids=ids, max_new_tokens=20, do_sample=False)
    plain = AutoModelForCausalLM.from_pretrained(folder).generate(input_ids=ids, max_new_tokens=20, do_sample=False)
    assert not torch.equal(plain, expected)
    for to in BOUNDS:
        export_adapter(model, tmp_path / to, to=to)
        loaded = load_adapter(AutoModelForCausalLM.from_pretrained(folder), tmp_path / to).eval()
        assert torch.equal(loaded.generate(input_ids=ids, max_new_tokens=20, do_sample=False), expected)

"""`measure_truncation`: the loss of a base model without the component that KaSA drops."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from kasatune import KasaConfig
from kasatune.adapter_tools.truncation import measure_truncation
from kasatune.kasa.truncation.self_written_text import generate_text
from tests.text_toys import make_llama


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("base"), max_position_embeddings=128)


@pytest.fixture(scope="module")
def measured(base):
    return measure_truncation(str(base), r=4)


def loss(model, text):
    with torch.no_grad():
        return float(model(input_ids=text, labels=text).loss)


def test_losses_are_those_of_the_attached_configuration(base, measured):
    model = AutoModelForCausalLM.from_pretrained(base)
    text = generate_text(model, 1)
    assert measured["loss"] == pytest.approx(loss(model, text), rel=1e-5)
    truncated = {entry["layers"]: entry for entry in measured["losses"]}
    assert list(truncated) == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "all"]
    for kind, targets in (("v_proj", ["v_proj"]), ("all", "all-linear")):
        adapted = get_peft_model(model, KasaConfig(r=4, target_modules=targets))
        assert truncated[kind]["magnitude"] == pytest.approx(loss(adapted, text), rel=1e-5)
        model = adapted.unload()
    assert truncated["all"]["magnitude"] != pytest.approx(measured["loss"], rel=1e-4)


def test_the_dropped_share_is_smallest_for_the_component_chosen_by_activation(measured):
    assert len(measured["layers"]) == 14
    assert all(0 < layer["activation"] <= layer["magnitude"] < 1 for layer in measured["layers"])

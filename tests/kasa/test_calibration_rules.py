"""What self-calibration may not depend on, change or attempt: settings, adapters, sharded models, other inputs."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model
from transformers import BertConfig, BertModel

from kasatune import KasaConfig, calibrate, export_adapter
from kasatune.errors import InputError, ModelError
from kasatune.kasa.truncation import compute_tails
from kasatune.kasa.truncation.measure_activations import measure_generated
from kasatune.weights.quantized_weight import weight_of
from tests.kasa.models import llama
from tests.peft_versions import needs_peft_kasa
from tests.text_toys import save_tokenizer

NAME = "model.layers.1.self_attn.v_proj"


def config(**changes):
    return KasaConfig(**{"r": 2, "target_modules": ["v_proj"], "truncate_by": "activation", **changes})


def moments(model):
    return measure_generated(model, {NAME: weight_of(model.get_submodule(NAME))}).moments[NAME].moments


def test_no_setting_of_the_models_generation_is_followed():
    plain, special = llama(), llama()
    settings = special.generation_config
    settings.repetition_penalty, settings.no_repeat_ngram_size, settings.min_p = 5.0, 2, 0.4
    settings.num_beams, settings.forced_eos_token_id, settings.stop_strings = 2, 2, ["x"]
    before = settings.to_dict()
    assert torch.equal(moments(special), moments(plain))
    assert special.generation_config is settings
    assert settings.to_dict() == before


def test_partitioned_models_and_models_with_other_inputs_are_refused():
    partitioned = llama()
    partitioned.get_submodule(NAME).weight.ds_id = 0
    with pytest.raises(ModelError, match=r"v_proj.*ZeRO-3.*calibrate\(base, config\)"):
        get_peft_model(partitioned, config())
    other = llama()

    def fails(*args, **kwargs):
        raise AttributeError("'NoneType' object has no attribute 'shape'")

    other.model.forward = fails
    with pytest.raises(InputError, match=r"no attribute 'shape'.*calibrate\(base, config, batches\)"):
        get_peft_model(other, config())


def test_an_encoder_reads_bundled_text_with_the_tokenizer_beside_its_weights(tmp_path):
    torch.manual_seed(0)
    settings = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=40,
    )  # fmt: skip
    BertModel(settings, add_pooling_layer=False).save_pretrained(tmp_path)
    for source in ("random", "bundled"):
        base = BertModel.from_pretrained(tmp_path, add_pooling_layer=False)
        model = get_peft_model(base, config(target_modules=["query"]))
        assert model.peft_config["default"].calibration_used["source"] == source
        save_tokenizer(tmp_path)


def test_the_model_does_not_hold_the_moments_and_the_callers_configuration_does():
    base = llama()
    calibrated = calibrate(base, config())
    model = get_peft_model(base, calibrated)
    assert model.peft_config["default"].activations is None
    assert calibrated.activations is not None
    again = get_peft_model(llama(), calibrated)
    assert again.peft_config["default"].calibration_used == model.peft_config["default"].calibration_used


@needs_peft_kasa
def test_as_many_triplets_as_the_rank_are_what_pefts_format_holds(tmp_path):
    for drop in (None, 2):
        torch.manual_seed(0)
        model = get_peft_model(llama(), config(truncate_by="magnitude", drop=drop))
        export_adapter(model, tmp_path / str(drop), to="peft-kasa")
    name = "adapter_model.safetensors"
    assert (tmp_path / "2" / name).read_bytes() == (tmp_path / "None" / name).read_bytes()
    with pytest.raises(InputError, match=r"drop=1: export to 'lora' or 'kasa'"):
        export_adapter(get_peft_model(llama(), config(truncate_by="magnitude", drop=1)), tmp_path / "1", to="peft-kasa")


def test_the_first_of_several_processes_chooses_and_the_others_receive(monkeypatch):
    sent = []
    monkeypatch.setattr(compute_tails.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(compute_tails.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(compute_tails.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(compute_tails, "broadcast_from_first", lambda value: sent.append(copy.deepcopy(value)) or value)
    first = get_peft_model(llama(), config(protect=0.1))
    monkeypatch.setattr(compute_tails.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(compute_tails, "broadcast_from_first", lambda value: sent[0] if value is None else value)
    other = get_peft_model(llama(), config(protect=0.1))
    assert len(sent) == 1
    used = [model.peft_config["default"].calibration_used for model in (first, other)]
    assert used[0] == used[1] and used[0]["source"] == "generated"
    tails = [model.get_submodule(f"base_model.model.{NAME}").tail("default") for model in (first, other)]
    assert torch.equal(*tails)

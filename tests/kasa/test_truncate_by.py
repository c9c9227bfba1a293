"""KaSA with the component that activations use least: attached, exported, saved, loaded, and refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from kasatune import KasaConfig, export_adapter, load_adapter
from kasatune.errors import InputError, ModelError
from kasatune.kasa import KasaLayer, calibrate
from kasatune.linalg.activation_tail import activation_tail

TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]
IDS = torch.arange(3, 33).reshape(3, 10)


def llama(seed=3):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def config(**changes):
    return KasaConfig(r=4, lora_alpha=8, target_modules=TARGETS, truncate_by="activation", **changes)


def batches():
    return [{"input_ids": IDS}, {"input_ids": IDS.flip(1)}]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def layers(model):
    return {name.removeprefix("base_model.model."): m for name, m in model.named_modules() if isinstance(m, KasaLayer)}


def trained(model):
    """The model with factors as after training."""
    draw = torch.Generator().manual_seed(1)
    for layer in layers(model).values():
        layer.kasa_B["default"].data.normal_(0, 0.1, generator=draw)
    return model


def test_every_layer_drops_what_its_activations_use_least():
    base = llama()
    calibrated = calibrate(base, config(), batches())
    weights = {name: base.get_submodule(name).weight.detach().clone() for name in calibrated.activations.moments}
    model = get_peft_model(base, calibrated)
    assert set(layers(model)) == set(weights)
    for name, layer in layers(model).items():
        expected = activation_tail(weights[name], calibrated.activations.moments[name], 4).tail
        torch.testing.assert_close(layer.tail("default"), (expected.U * expected.S) @ expected.Vh, atol=1e-5, rtol=1e-4)
        assert torch.linalg.matrix_rank(layer.tail("default").double(), rtol=1e-5) == 4


@pytest.mark.parametrize("given", [True, False], ids=["batches", "its own text"])
def test_it_starts_nearer_to_the_base_than_by_magnitude_and_disabling_gives_the_base(given):
    base = llama()
    untouched = logits(base)
    by_size = logits(get_peft_model(llama(), KasaConfig(r=4, target_modules=TARGETS)))
    model = get_peft_model(base, calibrate(base, config(), batches()) if given else config())
    assert (logits(model) - untouched).norm() < 0.9 * (by_size - untouched).norm()
    with model.disable_adapter():
        assert torch.equal(logits(model), untouched)
    assert torch.equal(logits(model.unload()), untouched)


@pytest.mark.parametrize("drop", [0, 2, 6])
def test_the_number_dropped_is_free_and_the_export_is_a_lora_of_rank_r_plus_d(drop, tmp_path):
    base = llama()
    model = trained(get_peft_model(base, calibrate(base, config(drop=drop), batches())))
    for layer in layers(model).values():
        assert layer.kasa_tail_U["default"].shape == (layer.out_features, drop)
        assert layer.kasa_tail_V["default"].shape == (drop, layer.in_features)
    expected = logits(model)
    export_adapter(model, tmp_path / "lora", to="lora")
    stock = PeftModel.from_pretrained(llama(), tmp_path / "lora")
    assert {m.r["default"] for m in stock.modules() if hasattr(m, "lora_A")} == {4 + drop}
    torch.testing.assert_close(logits(stock), expected, atol=1e-5, rtol=1e-4)


def test_a_saved_adapter_loads_with_equal_bits_and_says_how_it_was_calibrated(tmp_path):
    base = llama()
    model = trained(get_peft_model(base, config(drop=3)))
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["truncate_by"], saved["drop"]) == ("activation", 3)
    assert (saved["calibration_used"]["source"], saved["calibration_used"]["seed"]) == ("generated", 0)
    assert set(saved["calibration_used"]["layers"]) == set(layers(model))
    assert "activations" not in saved
    assert torch.equal(logits(PeftModel.from_pretrained(llama(), tmp_path)), logits(model))
    assert torch.equal(logits(load_adapter(llama(), tmp_path)), logits(model))


def test_kasa_as_published_is_saved_without_the_new_settings(tmp_path):
    get_peft_model(llama(), KasaConfig(r=4, target_modules=TARGETS)).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert not {"truncate_by", "drop", "calibration_used"} & set(saved)


def test_calibration_leaves_the_configuration_and_survives_a_deep_copy():
    base, given = llama(), config()
    calibrated = calibrate(base, given, batches())
    assert given.activations is None and given.target_modules == set(TARGETS)
    one = get_peft_model(llama(), copy.deepcopy(calibrated))
    two = get_peft_model(base, calibrated)
    for name, layer in layers(one).items():
        assert torch.equal(layer.tail("default"), layers(two)[name].tail("default"))


def test_activations_of_another_base_or_of_other_layers_are_refused():
    calibrated = calibrate(llama(), config(), batches())
    with pytest.raises(InputError, match="calibrated on another base model"):
        get_peft_model(llama(seed=4), copy.deepcopy(calibrated))
    calibrated.target_modules = {"o_proj"}
    with pytest.raises(InputError, match=r"o_proj was not calibrated"):
        get_peft_model(llama(), calibrated)


def test_a_saved_configuration_does_not_calibrate_by_itself(tmp_path):
    get_peft_model(llama(), config()).save_pretrained(tmp_path)
    fresh = get_peft_model(llama(), KasaConfig.from_pretrained(tmp_path))
    with pytest.raises(InputError, match=r"calibrate\(base, config\)"):
        logits(fresh)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"truncate_by": "size"}, "truncate_by must be one of magnitude, activation"),
        ({"drop": -1}, "drop must be a whole number of at least 0"),
        ({"drop": True}, "drop must be a whole number"),
        ({"truncate_by": "activation", "convention": "authors"}, "convention='authors' fixes"),
        ({"drop": 2, "convention": "authors"}, "convention='authors' fixes"),
        ({"truncate_by": "sensitivity", "tails": "folder"}, "tails holds components that were chosen without the task"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        KasaConfig(**settings)


def test_too_many_dropped_triplets_and_the_wrong_configuration_are_refused():
    with pytest.raises(ModelError, match=r"drop 16 must be below min\(out, in\) = 8"):
        get_peft_model(llama(), config(drop=16))
    with pytest.raises(InputError, match="does not depend on activations"):
        calibrate(llama(), KasaConfig(r=4), batches())
    with pytest.raises(InputError, match="Use `from kasatune import KasaConfig`"):
        calibrate(llama(), LoraConfig(), batches())


@pytest.mark.parametrize("to", ["peft-kasa", "authors"])
def test_formats_whose_readers_drop_by_magnitude_are_refused(to, tmp_path):
    model = get_peft_model(llama(), config())
    with pytest.raises(InputError, match=r"truncate_by='activation'.*export to 'lora' or 'kasa'"):
        export_adapter(model, tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()


def test_activations_do_not_choose_for_a_configuration_set_back_to_magnitude():
    base = llama()
    calibrated = calibrate(base, config(), batches())
    calibrated.truncate_by = "magnitude"
    model = get_peft_model(base, calibrated)
    for name, layer in layers(get_peft_model(llama(), KasaConfig(r=4, target_modules=TARGETS))).items():
        assert torch.equal(layers(model)[name].tail("default"), layer.tail("default"))
    assert model.peft_config["default"].calibration_used is None

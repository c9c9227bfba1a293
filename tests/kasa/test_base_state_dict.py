"""State dicts of models with KaSA layers: the base weight is W, and nothing that is loaded in part is lost."""

from __future__ import annotations

import copy
import pickle

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from kasatune import KasaConfig
from kasatune.errors import AdapterError
from kasatune.kasa import KasaLayer
from tests.peft_versions import needs_base_state_dict, needs_peft_0_19

X = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))


def base(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 10))


def adapted(model=None, **settings):
    model = get_peft_model(model or base(), KasaConfig(r=2, target_modules=["0", "1"], **settings))
    torch.manual_seed(1)
    for layer in layers(model):
        layer.kasa_B["default"].data.normal_()
    return model


def layers(model):
    return [module for module in model.modules() if isinstance(module, KasaLayer)]


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


# The base through PEFT's functions

STATES = {
    "attached": lambda model: None,
    "merged": lambda model: model.merge_adapter(),
    "disabled": lambda model: model.base_model.disable_adapter_layers(),
    "merged and disabled": lambda model: (model.merge_adapter(), model.base_model.disable_adapter_layers()),
    "copied": lambda model: None,
}


def in_state(state, **settings):
    model = adapted(**settings)
    STATES[state](model)
    return copy.deepcopy(model) if state == "copied" else model


@needs_base_state_dict
@pytest.mark.parametrize("truncation", ["attach", "fold"])
@pytest.mark.parametrize("state", STATES)
def test_the_state_dict_of_the_base_holds_its_original_weights(state, truncation):
    model = in_state(state, truncation=truncation)
    assert equal(peft.get_base_model_state_dict(model), base().state_dict())


@needs_base_state_dict
@pytest.mark.parametrize("truncation", ["attach", "fold"])
@pytest.mark.parametrize("state", STATES)
def test_a_base_that_is_loaded_is_the_base_from_then_on(state, truncation):
    other = base(seed=5).state_dict()
    model = in_state(state, truncation=truncation)
    expected = adapted(truncation=truncation)
    for layer, weight in zip(layers(expected), ("0.weight", "1.weight"), strict=True):
        change = layer.change("default")
        layer.restore_base()
        layer.get_base_layer().weight.data = other[weight] + change
    peft.set_base_model_state_dict(model, other)
    assert equal(peft.get_base_model_state_dict(model), other)
    if "disabled" in state:
        assert torch.equal(model(X), other_outputs(other))
        model.base_model.enable_adapter_layers()
    assert_close(model(X), outputs_of_merged(expected, other))
    if "merged" in state:
        model.unmerge_adapter()
        assert_close(model(X), outputs_of_merged(expected, other))
    assert equal(model.unload().state_dict(), other)


def assert_close(left, right):
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def other_outputs(tensors):
    model = base()
    model.load_state_dict(tensors)
    return model(X)


def outputs_of_merged(expected, other):
    model = base()
    weights = [layer.get_base_layer().weight for layer in layers(expected)]
    model.load_state_dict({**other, "0.weight": weights[0], "1.weight": weights[1]})
    return model(X)


def test_a_merged_model_still_gives_its_merged_weights_to_everybody_else():
    model = adapted()
    merged = copy.deepcopy(model).merge_and_unload()
    model.merge_adapter()
    assert torch.equal(model.state_dict()["base_model.model.0.base_layer.weight"], merged[0].weight)


# Plain state dicts of a folded model


def test_a_folded_model_has_the_state_dict_of_an_attached_one():
    assert equal(adapted(truncation="fold").state_dict(), adapted().state_dict())


@pytest.mark.parametrize("assign", [False, True])
def test_a_folded_model_is_restored_from_its_state_dict(assign):
    trained = adapted(truncation="fold")
    other = adapted(base(seed=5), truncation="fold")
    other.load_state_dict(trained.state_dict(), assign=assign)
    assert torch.equal(other(X), trained(X))
    assert equal(other.unload().state_dict(), base().state_dict())


@needs_base_state_dict
def test_a_folded_layer_that_was_pickled_keeps_its_base():
    model = pickle.loads(pickle.dumps(adapted(truncation="fold")))
    peft.set_base_model_state_dict(model, base(seed=5).state_dict())
    assert equal(model.unload().state_dict(), base(seed=5).state_dict())


def test_a_tail_that_is_loaded_alone_is_folded():
    trained = adapted(base(seed=5), truncation="fold")
    model = adapted(truncation="fold")
    tails = {key: t for key, t in trained.state_dict().items() if "kasa_tail" in key}
    model.load_state_dict(tails, strict=False)
    assert all(layer.folded == "default" for layer in layers(model))
    for layer, source in zip(layers(model), layers(trained), strict=True):
        expected = layer.original_weight() - source.tail("default")
        torch.testing.assert_close(layer.get_base_layer().weight.data, expected)


# Tensors of an adapter that is in use


def damaged(kind, tensors):
    first = sorted(tensors)[0]
    if kind == "NaN":
        return {**tensors, first: torch.full_like(tensors[first], torch.nan)}
    if kind == "shape":
        return {**tensors, first: torch.zeros(3, 3)}
    if kind == "integers":
        return {**tensors, first: torch.zeros_like(tensors[first], dtype=torch.int64)}
    if kind == "stray":
        return {**tensors, "base_model.model.7.kasa_A": torch.zeros(2, 10)}
    return {key: tensor for key, tensor in tensors.items() if not key.endswith("0.kasa_tail_V")}


PARTS = {
    "one layer": lambda key: "model.0." in key,
    "one factor": lambda key: key.endswith("kasa_B"),
    "one tensor": lambda key: key.endswith("0.kasa_sigma"),
    "nothing": lambda key: False,
}


@pytest.mark.parametrize("truncation", ["attach", "fold"])
@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_loaded_into_an_adapter_in_use_and_the_rest_is_reported(part, truncation):
    model = adapted(truncation=truncation)
    before = peft.get_peft_model_state_dict(model)
    before = {key: tensor.clone() for key, tensor in before.items()}
    given = {key: 2 * tensor for key, tensor in before.items() if PARTS[part](key)}
    result = peft.set_peft_model_state_dict(model, given)
    missing = {key.replace(".default", "") for key in result.missing_keys if "kasa_" in key}
    assert missing == set(before) - set(given)
    assert equal(peft.get_peft_model_state_dict(model), {**before, **given})
    fresh = adapted(truncation=truncation)
    peft.set_peft_model_state_dict(fresh, {**before, **given})
    torch.testing.assert_close(model(X), fresh(X))


@pytest.mark.parametrize("truncation", ["attach", "fold"])
@pytest.mark.parametrize("kind", ["NaN", "shape", "integers", "stray", "half a tail"])
def test_damaged_tensors_leave_an_adapter_in_use_as_it_was(kind, truncation, tmp_path):
    model = adapted(truncation=truncation)
    outputs, tensors = model(X), peft.get_peft_model_state_dict(model)
    with pytest.raises(AdapterError):
        peft.set_peft_model_state_dict(model, damaged(kind, tensors))
    assert torch.equal(model(X), outputs)
    assert list(model.peft_config) == model.active_adapters == ["default"]
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == tensors.keys()


def test_files_that_are_damaged_leave_an_adapter_in_use_as_it_was(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    outputs = model(X)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(damaged("NaN", tensors), tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="NaN"):
        model.load_adapter(tmp_path, "default")
    assert torch.equal(model(X), outputs)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_part_is_refused_by_an_adapter_without_tensors_which_stays_attached(tmp_path, wrapped):
    trained = adapted()
    trained.save_pretrained(tmp_path)
    config = KasaConfig.from_pretrained(tmp_path)
    model = get_peft_model(base(), config) if wrapped else peft.inject_adapter_in_model(config, base())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="is missing"):
        peft.set_peft_model_state_dict(model, {key: t for key, t in tensors.items() if "model.0." in key})
    assert len(layers(model)) == 2
    peft.set_peft_model_state_dict(model, tensors)
    torch.testing.assert_close(model(X), trained(X))


def test_a_damaged_file_of_a_new_adapter_leaves_no_adapter_behind(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(damaged("NaN", tensors), tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError):
        model.load_adapter(tmp_path, "other")
    assert list(model.peft_config) == ["default"]
    untouched = base()
    with pytest.raises(AdapterError):
        PeftModel.from_pretrained(untouched, tmp_path)
    assert not layers(untouched)


# Compiled models


def compiled_model():
    return torch.compile(base(), backend="eager")


def test_an_adapter_fits_a_compiled_base_and_the_same_base_uncompiled(tmp_path):
    plain = adapted()
    tensors = peft.get_peft_model_state_dict(plain)
    model = get_peft_model(compiled_model(), KasaConfig(r=2, target_modules=["0", "1"]))
    assert model.peft_config["default"].base_fingerprint == plain.peft_config["default"].base_fingerprint
    assert len(layers(model)) == 2
    peft.set_peft_model_state_dict(model, tensors)
    assert_close(model(X), plain(X))
    plain.save_pretrained(tmp_path)
    assert_close(PeftModel.from_pretrained(compiled_model(), tmp_path)(X), plain(X))


@needs_peft_0_19
def test_an_adapter_is_injected_into_a_compiled_model_by_the_keys_of_its_tensors():
    model = nn.ModuleDict({"lin0": nn.Linear(10, 20)})
    tensors = peft.get_peft_model_state_dict(
        peft.inject_adapter_in_model(KasaConfig(r=2, target_modules=["lin0"]), copy.deepcopy(model))
    )
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    peft.inject_adapter_in_model(KasaConfig(r=2, target_modules=["lin0"]), compiled, state_dict=tensors)
    assert not peft.set_peft_model_state_dict(compiled, tensors).unexpected_keys
    assert torch.equal(compiled._orig_mod["lin0"].kasa_A["default"], tensors["lin0.kasa_A"])


def test_merging_one_adapter_leaves_no_tail_of_another_that_is_folded():
    model = adapted(truncation="fold")
    model.add_adapter("other", KasaConfig(r=2, target_modules=["1"], truncation="fold"))
    assert torch.equal(model.merge_and_unload(adapter_names=["other"])[0].weight, base()[0].weight)

"""Adapters with the configuration of a saved one: loaded by any tool without decomposing, or decomposed when needed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from kasatune import KasaConfig, export_adapter, load_adapter
from kasatune.errors import AdapterError
from kasatune.kasa import KasaLayer
from tests.kasa.models import bert, labels, shaken, token_ids

LAYERS = 4
WEIGHTS = "adapter_model.safetensors"


def logits(model):
    with torch.no_grad():
        return model.eval()(token_ids()).logits


@pytest.fixture
def saved(tmp_path, decompositions):
    """A directory with a trained adapter, and the outputs of its model; no decomposition is counted yet."""
    model = shaken(get_peft_model(bert(), KasaConfig(r=4)))
    model.save_pretrained(tmp_path)
    decompositions.clear()
    return tmp_path, logits(model)


def third_party_from_pretrained(base, folder, *, trainable, load):
    """A loader as other tools write it: PEFT's public classes, and its own way to put the tensors in."""
    config = PeftConfig.from_pretrained(folder)
    config.inference_mode = not trainable
    model = PeftModel(base, config)
    tensors = load_file(folder / WEIGHTS)
    if load == "peft":
        set_peft_model_state_dict(model, tensors)
    else:
        model.load_state_dict({f"{name}.default": tensor for name, tensor in tensors.items()}, strict=False)
    return model


def other_base():
    base = bert()
    with torch.no_grad():
        base.bert.encoder.layer[1].attention.self.value.weight.add_(0.05 * torch.randn(32, 32))
    return base


# Loaded


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("load", ["peft", "torch"])
def test_another_tools_loader_gets_the_adapter_without_decomposing(saved, decompositions, trainable, load):
    folder, expected = saved
    model = third_party_from_pretrained(bert(), folder, trainable=trainable, load=load)
    assert torch.equal(logits(model), expected)
    assert decompositions == []
    assert any(p.requires_grad for p in model.parameters()) == trainable


def test_an_injected_adapter_is_loaded_without_decomposing(saved, decompositions):
    folder, expected = saved
    model = inject_adapter_in_model(KasaConfig.from_pretrained(folder), bert())
    set_peft_model_state_dict(model, load_file(folder / WEIGHTS))
    assert torch.equal(logits(model), expected)
    assert decompositions == []


@pytest.mark.parametrize("load", ["peft", "torch"])
def test_another_base_is_noticed_by_whatever_loader(saved, load):
    folder, _ = saved
    with pytest.raises(AdapterError, match=r"another base model.*layer\.1\.attention\.self\.value"):
        logits(third_party_from_pretrained(other_base(), folder, trainable=False, load=load))


def test_an_adapter_loaded_in_part_is_refused_when_it_is_used(saved):
    folder, _ = saved
    tensors = load_file(folder / WEIGHTS)
    save_file({name: t for name, t in tensors.items() if "layer.1" not in name}, folder / WEIGHTS)
    model = third_party_from_pretrained(bert(), folder, trainable=False, load="torch")
    with pytest.raises(AdapterError, match=r"loaded in part: 2 of 4 layers have no tail"):
        model(token_ids())


# Not loaded: decomposed when needed

NEEDS = {
    "a forward pass": lambda model, tmp_path: logits(model),
    "training mode": lambda model, tmp_path: model.train(),
    "saving": lambda model, tmp_path: model.save_pretrained(tmp_path / "again"),
    "exporting": lambda model, tmp_path: export_adapter(model, tmp_path / "lora"),
    "merging": lambda model, tmp_path: model.merge_adapter(),
    "reading the tail": lambda model, tmp_path: next(m for m in model.modules() if isinstance(m, KasaLayer)).tail(
        "default"
    ),
}


@pytest.mark.parametrize("need", NEEDS)
def test_a_fresh_adapter_with_a_saved_configuration_is_decomposed_at_the_first_need(
    saved, decompositions, tmp_path, need
):
    folder, _ = saved
    model = get_peft_model(other_base(), KasaConfig.from_pretrained(folder))
    assert decompositions == []
    NEEDS[need](model, tmp_path)
    assert len(decompositions) == LAYERS
    logits(model)
    assert len(decompositions) == LAYERS
    for name, tensor in model.state_dict().items():
        assert torch.isfinite(tensor).all(), name


def test_a_fresh_adapter_with_a_saved_configuration_has_the_same_bits_as_any_fresh_one(saved):
    folder, _ = saved
    torch.manual_seed(5)
    expected = get_peft_model(bert(), KasaConfig(r=4))
    torch.manual_seed(5)
    model = get_peft_model(bert(), KasaConfig.from_pretrained(folder))
    model.train()
    tensors = model.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in expected.state_dict().items())
    assert model.peft_config["default"].base_fingerprint == expected.peft_config["default"].base_fingerprint


def test_what_it_saves_belongs_to_its_own_base(saved, tmp_path):
    folder, _ = saved
    base = other_base()
    weights = copy.deepcopy(base.state_dict())
    get_peft_model(base, KasaConfig.from_pretrained(folder)).save_pretrained(tmp_path / "again")
    same = bert()
    same.load_state_dict(weights)
    load_adapter(same, tmp_path / "again")
    with pytest.raises(AdapterError, match="another base model"):
        load_adapter(bert(), tmp_path / "again")


def test_it_folds_once_it_is_decomposed(saved):
    folder, _ = saved
    config = KasaConfig.from_pretrained(folder)
    config.truncation = "fold"
    torch.manual_seed(5)
    model = get_peft_model(bert(), config)
    torch.manual_seed(5)
    assert torch.equal(logits(model), logits(get_peft_model(bert(), KasaConfig(r=4, truncation="fold"))))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_made_before_the_first_need_is_a_model_of_its_own(saved, decompositions, duplicate):
    folder, _ = saved
    model = get_peft_model(bert(), KasaConfig.from_pretrained(folder))
    twin = duplicate(model)
    expected = logits(model)
    assert len(decompositions) == LAYERS
    assert torch.equal(logits(twin), expected)
    assert len(decompositions) == 2 * LAYERS


def test_a_second_adapter_is_deferred_by_itself(saved, decompositions):
    folder, _ = saved
    model = get_peft_model(bert(), KasaConfig(r=2))
    decompositions.clear()
    model.add_adapter("second", KasaConfig.from_pretrained(folder))
    logits(model)
    assert decompositions == []
    model.set_adapter("second")
    logits(model)
    assert len(decompositions) == LAYERS
    model.delete_adapter("second")
    logits(model.base_model)


def test_it_trains(saved):
    folder, _ = saved
    config = KasaConfig.from_pretrained(folder)
    config.inference_mode = False
    model = get_peft_model(bert(), config).train()
    model(input_ids=token_ids(), labels=labels()).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)

"""Bottleneck adapters through PEFT's functions: several adapters, low memory loading, dtypes, and what is refused."""

from __future__ import annotations

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kasatune.errors import InputError, ModelError
from kasatune.methods.bottleneck import BottleneckConfig
from tests.methods.bottleneck.models import IDS, make

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
WEIGHTS = "adapter_model.safetensors"


def base(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 8)).to(dtype).eval()


def trained(name="default", model=None, **settings):
    settings = {"r": 2, "places": {"0": "output"}, **settings}
    model = peft.get_peft_model(model or base(), BottleneckConfig(**settings), adapter_name=name)
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "bottleneck_" in key:
                parameter.normal_()
    return model.eval()


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("name", ["other", "down", "default"])
def test_an_adapter_is_loaded_under_any_name(tmp_path, name, low_cpu_mem_usage):
    model = trained()
    model.save_pretrained(tmp_path)
    first = peft.PeftModel.from_pretrained(base(), tmp_path, "first", low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(first(X), model(X))
    result = first.load_adapter(tmp_path, name, low_cpu_mem_usage=low_cpu_mem_usage)
    assert not [key for key in result.missing_keys if f"adapter.{name}." in key]
    assert not result.unexpected_keys
    assert not any(parameter.is_meta for parameter in first.parameters())
    first.set_adapter(name)
    assert torch.equal(first(X), model(X))


def test_files_have_the_same_keys_whatever_the_adapter_is_called(tmp_path):
    trained("fancy").save_pretrained(tmp_path / "named")
    trained().save_pretrained(tmp_path)
    keys = load_file(tmp_path / WEIGHTS).keys()
    assert load_file(tmp_path / "named" / "fancy" / WEIGHTS).keys() == keys
    assert "base_model.model.0.bottleneck_adapter.default.down.weight" in keys


def test_files_that_hold_the_name_of_their_adapter_are_still_read(tmp_path):
    model = trained()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({key.replace(".default.", ".fancy."): tensor for key, tensor in tensors.items()}, tmp_path / WEIGHTS)
    assert torch.equal(peft.PeftModel.from_pretrained(base(), tmp_path)(X), model(X))


@pytest.mark.parametrize("kind", ["houlsby", "parallel"])
def test_a_second_adapter_with_little_memory_computes_as_the_first(tmp_path, kind):
    model = trained(model=make("bert"), places=None, kind=kind)
    model.save_pretrained(tmp_path)
    other = peft.PeftModel.from_pretrained(make("bert"), tmp_path, low_cpu_mem_usage=True)
    other.load_adapter(tmp_path, "other", low_cpu_mem_usage=True)
    other.set_adapter("other")
    other.eval()
    assert torch.equal(other(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("place", ["0", "1"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_without_autocast_the_adapter_has_the_dtype_of_the_base(dtype, place):
    model = base(dtype)
    if place == "1":
        model.config = type("Config", (dict,), {"hidden_size": 8, "model_type": "none"})()
    config = BottleneckConfig(r=2, places={place: "output"})
    adapted = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    adapted.add_adapter("other", config, autocast_adapter_dtype=False)
    assert {p.dtype for name, p in adapted.named_parameters() if "bottleneck_" in name} == {dtype}
    wide = peft.get_peft_model(base(dtype), BottleneckConfig(r=2, places={"0": "output"}))
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert {p.dtype for name, p in wide.named_parameters() if "bottleneck_" in name} == {expected}


def test_batches_of_mixed_adapters_are_refused():
    model = trained()
    with pytest.raises(InputError, match="adapter_names: bottleneck adapters act on the entire batch"):
        model(X, adapter_names=["default", "__base__", "default"])


@pytest.mark.parametrize("places", [{"nowhere": "output"}, {"0": "output", "layers.0": "output", "x": "output"}])
def test_places_that_do_not_exist_are_named(places):
    with pytest.raises(ModelError, match=r"places: (nowhere|layers\.0) is no module of Sequential"):
        peft.get_peft_model(base(), BottleneckConfig(r=2, places=places))


def test_a_layer_has_the_features_of_its_base():
    layer = trained().base_model.model[0]
    assert (layer.in_features, layer.out_features) == (8, 8)

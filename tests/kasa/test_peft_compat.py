"""What older versions of PEFT lack: selecting, loading and freezing of parameters, and reading of quantized weights.

The replacements are compared with PEFT's own functions where these exist; with older versions of PEFT
(`make test-peft-versions`) every test of this folder runs through them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from kasatune import KasaConfig
from kasatune.kasa.model import KasaModel
from kasatune.peft_compat import quantization_backends, save_and_load
from kasatune.peft_compat.tuner_bases import HAS_STATE_DICT_HOOKS, HookedTuner

newer = pytest.mark.skipif(not HAS_STATE_DICT_HOOKS, reason="compares with functions that PEFT has since 0.21")


def two_adapters(bias: str = "none") -> PeftModel:
    """Adapters "default" and "other" on two layers, and a head that is trained."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("middle", nn.Linear(8, 8))
    model.add_module("lin", nn.Linear(8, 8))
    model.add_module("head", nn.Linear(8, 2))
    config = {"r": 2, "target_modules": ["middle", "lin"], "modules_to_save": ["head"], "bias": bias}
    adapted = get_peft_model(model, KasaConfig(**config))
    adapted.add_adapter("other", KasaConfig(**{**config, "r": 3, "bias": "none"}))
    return adapted


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(tensor, other[key]) for key, tensor in one.items())


@newer
@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("adapter", ["default", "other"])
def test_the_tensors_to_save_are_those_that_peft_selects(bias, adapter):
    model = two_adapters(bias)
    expected = peft.get_peft_model_state_dict(model, adapter_name=adapter)
    assert same(save_and_load._get_state_dict(peft.get_peft_model_state_dict, model, adapter_name=adapter), expected)
    config, tensors = model.peft_config[adapter], model.state_dict()
    others = [name for name in model.peft_config if name != adapter]
    tensors = {key: t for key, t in tensors.items() if not any(key.endswith(f".{name}") for name in others)}
    arguments = (model, config, adapter, tensors, others)
    selected = super(KasaModel, KasaModel)._get_adapter_state_dict(*arguments)
    assert HookedTuner._get_adapter_state_dict(*arguments).keys() == selected.keys()


@newer
def test_keys_of_a_file_become_those_that_peft_gives_them():
    model = two_adapters("all")
    saved = peft.get_peft_model_state_dict(model, adapter_name="other")
    arguments = (model, model.peft_config["other"], "other", saved)
    expected = super(KasaModel, KasaModel)._remap_adapter_state_dict_for_load(*arguments)
    assert same(HookedTuner._remap_adapter_state_dict_for_load(*arguments), expected)


def test_loading_sets_the_tensors_of_one_adapter_and_of_its_head():
    model, source = two_adapters(), two_adapters()
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if "kasa_tail" not in name:
                parameter.add_(1.0)
    saved = peft.get_peft_model_state_dict(source, adapter_name="other")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    result = save_and_load._set_state_dict(peft.set_peft_model_state_dict, model, dict(saved), "other")
    assert result.unexpected_keys == []
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    layers = ("base_model.model.middle", "base_model.model.lin")
    expected = {f"{layer}.{kind}.other" for layer in layers for kind in ("kasa_A", "kasa_B", "kasa_sigma")}
    head = "base_model.model.head.modules_to_save.other"
    assert changed == expected | {f"{head}.weight", f"{head}.bias"}


def test_a_saved_adapter_holds_no_other_adapter_and_its_biases(tmp_path):
    model = two_adapters("all")
    model.save_pretrained(tmp_path)
    keys = peft.utils.load_peft_weights(str(tmp_path), device="cpu").keys()
    assert {"base_model.model.lin.kasa_A", "base_model.model.lin.base_layer.bias"} <= keys
    assert not [key for key in keys if key.endswith((".default", ".other"))]


def test_the_tail_is_never_trained():
    model = two_adapters()
    model.set_adapter("other")
    model.base_model.disable_adapter_layers()
    model.base_model.enable_adapter_layers()
    layer = model.base_model.model.lin
    layer.set_requires_grad("default", True)
    trained = {name.split(".kasa_")[1] for name, p in layer.named_parameters(prefix="x") if p.requires_grad}
    assert trained == {f"{kind}.{name}" for kind in ("A", "B", "sigma") for name in ("default", "other")}


def test_functions_of_peft_that_were_imported_before_are_replaced_too():
    """In PEFT 0.21 nothing is replaced."""
    assert hasattr(peft.set_peft_model_state_dict, "__wrapped__") is not HAS_STATE_DICT_HOOKS
    assert peft.peft_model.set_peft_model_state_dict is peft.set_peft_model_state_dict
    save_and_load.install()
    assert not hasattr(getattr(peft.get_peft_model_state_dict, "__wrapped__", None), "__wrapped__")


def test_an_adapter_of_peft_is_saved_as_without_kasatune():
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), peft.LoraConfig(r=2, target_modules=["0"]))
    keys = peft.get_peft_model_state_dict(model).keys()
    assert keys == {f"base_model.model.0.lora_{factor}.weight" for factor in "AB"}


@pytest.fixture
def older_backends(monkeypatch):
    """The module of quantization backends as it is with PEFT before 0.20."""
    find = importlib.util.find_spec
    absent = "peft.utils.quantization_utils"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == absent else find(name, *rest))
    spec = importlib.util.spec_from_file_location("older_backends", Path(quantization_backends.__file__))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_4_bit_weights_are_read_with_older_versions_of_peft(older_backends):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (kasatune[quant])")
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(64, 32, quant_type="nf4", compute_dtype=torch.float32)
    W = torch.randn(32, 64)
    layer.weight = bitsandbytes.nn.Params4bit(W, requires_grad=False, quant_type="nf4").to("cpu")
    backend = older_backends.resolve_quantization_backend(layer)
    assert (backend.backend_name, backend.supports_merge) == ("bnb 4bit", False)
    read = backend.get_base_weight(layer)
    assert read.shape == W.shape
    assert float((read - W).norm() / W.norm()) < 0.15  # rounding of NF4


def test_layers_are_recognized_by_their_class_with_older_versions_of_peft(older_backends):
    assert older_backends.resolve_quantization_backend(nn.Linear(2, 2)) is None
    packed = type("QuantLinear", (nn.Module,), {"__module__": "gptqmodel.nn_modules.qlinear.torch"})()
    backend = older_backends.resolve_quantization_backend(packed)
    assert backend.backend_name == "gptq"
    with pytest.raises(TypeError, match="gptq"):
        backend.get_base_weight(packed)
    assert older_backends.get_quantization_kwargs(nn.Linear(2, 2)) == {}

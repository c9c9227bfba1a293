"""Convolutions with a kernel of 1: the linear layer that they are at every place."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification

from kasatune import KasaConfig, export_adapter, load_adapter
from kasatune.adapter_tools.inspect import inspect
from kasatune.adapter_tools.merge import merge
from kasatune.adapters.export import export_smaller_lora
from kasatune.errors import InputError
from tests.kasa.models import shaken, squeezebert, token_ids

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}


class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def pair(dimensions, **settings):
    """A convolution and the Linear layer of the same weight, both adapted alike, and inputs of the convolution."""
    torch.manual_seed(0)
    linear = nn.Linear(10, 14)
    conv = CONVOLUTIONS[dimensions](10, 14, 1)
    conv.load_state_dict({"weight": linear.weight.detach().reshape(conv.weight.shape), "bias": linear.bias.detach()})
    made = []
    for layer in (conv, linear):
        torch.manual_seed(1)
        made.append(shaken(get_peft_model(Net(layer), KasaConfig(r=3, target_modules=["layer"], **settings))))
    x = torch.randn(2, 10, *[5, 4][:dimensions], generator=torch.Generator().manual_seed(2))
    return *made, x


def by_linear(model, x):
    return model(x.movedim(1, -1)).movedim(-1, 1)


def logits(model):
    with torch.no_grad():
        return model.eval()(token_ids()).logits


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("dimensions", CONVOLUTIONS)
@pytest.mark.parametrize("settings", [{}, {"truncation": "fold"}, {"core": "dense"}, {"lora_dropout": 0.5}], ids=str)
def test_outputs_and_gradients_are_those_of_the_linear_layer(dimensions, settings):
    conv, linear, x = pair(dimensions, **settings)
    if not settings.get("lora_dropout"):
        conv.train()
        linear.train()
    else:
        conv.eval()
        linear.eval()
    close(conv(x), by_linear(linear, x))
    close(conv(x[0]), by_linear(linear, x[:1])[0])
    conv(x).square().sum().backward()
    by_linear(linear, x).square().sum().backward()
    for (name, one), (_, other) in zip(conv.named_parameters(), linear.named_parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("dimensions", CONVOLUTIONS)
def test_disabled_unmerged_and_unloaded_it_is_the_base_bit_for_bit(dimensions):
    conv, _, x = pair(dimensions)
    plain = CONVOLUTIONS[dimensions](10, 14, 1)
    plain.load_state_dict(conv.base_model.model.layer.base_layer.state_dict())
    expected, adapted = plain(x), conv(x)
    with conv.disable_adapter():
        assert torch.equal(conv(x), expected)
    conv.merge_adapter()
    close(conv(x), adapted)
    conv.unmerge_adapter()
    assert torch.equal(conv(x), adapted)
    assert torch.equal(conv.unload()(x), expected)


# A text model whose linear layers are convolutions


@pytest.fixture
def trained(tmp_path):
    """A base saved in ./base, a native adapter in ./kasa, and the adapted model."""
    squeezebert().save_pretrained(tmp_path / "base")
    torch.manual_seed(5)
    config = KasaConfig(r=4, target_modules=["query", "conv1d"], task_type="SEQ_CLS", rank_pattern={"query": 2})
    model = shaken(get_peft_model(base_in(tmp_path), config))
    model.save_pretrained(tmp_path / "kasa")
    return model


def base_in(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder / "base")


def test_it_is_saved_loaded_and_exported_to_lora_as_peft_has_it(trained, tmp_path):
    expected = logits(trained)
    close(logits(PeftModel.from_pretrained(base_in(tmp_path), tmp_path / "kasa")), expected)
    export_adapter(tmp_path / "kasa", tmp_path / "lora", base=base_in(tmp_path))
    close(logits(PeftModel.from_pretrained(base_in(tmp_path), tmp_path / "lora")), expected)
    loaded = load_adapter(base_in(tmp_path), tmp_path / "lora")
    close(logits(loaded), expected)
    assert loaded.base_model.model.transformer.encoder.layers[0].attention.query.lora_A["default"].weight.shape == (
        *(4, 32, 1),
    )


def test_a_smaller_rank_is_loaded_by_peft_too(trained, tmp_path):
    export_smaller_lora(tmp_path / "kasa", tmp_path / "small", rank=2, base=base_in(tmp_path))
    small = logits(PeftModel.from_pretrained(base_in(tmp_path), tmp_path / "small"))
    assert (small - logits(trained)).abs().max() > 1e-4
    export_smaller_lora(tmp_path / "small", tmp_path / "same", rank=2)
    close(logits(PeftModel.from_pretrained(base_in(tmp_path), tmp_path / "same")), small)


def test_it_is_merged_and_inspected(trained, tmp_path):
    merge(tmp_path / "kasa", tmp_path / "merged", base=str(tmp_path / "base"))
    close(logits(AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")), logits(trained))
    layers = inspect(tmp_path / "kasa", str(tmp_path / "base"))["layers"]
    assert all("singular_values" in layer["base"] for layer in layers)


@pytest.mark.parametrize(("to", "reader"), [("peft-kasa", "PEFT"), ("authors", "the authors' code")])
def test_the_other_kasa_forms_are_refused_with_the_layers_named(trained, tmp_path, to, reader):
    with pytest.raises(InputError, match=rf"{reader} has no KaSA on convolutions \(transformer\.encoder"):
        export_adapter(trained, tmp_path / "new", to=to)
    assert not (tmp_path / "new").exists()

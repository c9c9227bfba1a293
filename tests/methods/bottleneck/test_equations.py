"""Each kind of bottleneck adapter compared with its equation in float64."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kasatune.methods.bottleneck import BottleneckConfig
from tests.methods.bottleneck.models import make


def pair(architecture, **fields):
    """(base, adapted model) in float64, every adapter tensor drawn."""
    base = make(architecture).double()
    torch.manual_seed(3)
    model = peft.get_peft_model(copy.deepcopy(base), BottleneckConfig(r=4, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter))
    return base, model


def tensors(model, place):
    """The adapter's tensors at a module, by their letters."""
    found = {
        name.rpartition("bottleneck_adapter.default.")[2]: p for name, p in model.named_parameters() if place in name
    }
    return {name: p.detach() for name, p in found.items() if p.requires_grad}


def literal(h, t, f):
    """W_up f(W_down h + b_down) + b_up, each entry as written."""
    z = h @ t["down.weight"].T + t.get("down.bias", 0)
    return f(z) @ t["up.weight"].T + t.get("up.bias", 0)


def gelu(z):
    return 0.5 * z * (1 + torch.erf(z / 2**0.5))


def relu(z):
    return torch.where(z > 0, z, torch.zeros_like(z))


def layer_norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) * weight + bias


@pytest.mark.parametrize("sublayer", ["attention.output", "output"])
def test_houlsby_sits_between_a_sublayer_and_its_residual_connection(sublayer):
    base, model = pair("bert", kind="houlsby", activation="gelu")
    theirs = base.bert.encoder.layer[1].get_submodule(sublayer)
    ours = model.base_model.model.bert.encoder.layer[1].get_submodule(sublayer)
    inside, x = torch.randn(2, 5, theirs.dense.in_features).double(), torch.randn(2, 5, 16).double()
    h = theirs.dense(inside)
    h = h + literal(h, tensors(model, f"layer.1.{sublayer}.dropout"), gelu)
    expected = layer_norm(h + x, theirs.LayerNorm.weight, theirs.LayerNorm.bias, theirs.LayerNorm.eps)
    torch.testing.assert_close(ours(inside, x), expected)


def test_houlsby_acts_after_the_dropout_of_the_sublayer():
    _, model = pair("bert", kind="houlsby")
    output = model.base_model.model.bert.encoder.layer[0].output.train()
    output.dropout.base_layer.p = 1.0
    t = tensors(model, "layer.0.output.dropout")
    x = torch.randn(1, 2, 16).double()
    norm = output.LayerNorm
    expected = layer_norm(x + literal(torch.zeros_like(x), t, relu), norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(output(torch.randn(1, 2, 24).double(), x), expected)


def test_pfeiffer_reads_the_layer_norm_and_adds_before_it():
    base, model = pair("bert", kind="pfeiffer")
    theirs = base.bert.encoder.layer[2].output
    ours = model.base_model.model.bert.encoder.layer[2].output
    inside, x = torch.randn(2, 5, 24).double(), torch.randn(2, 5, 16).double()
    z = theirs.dense(inside) + x
    norm = (theirs.LayerNorm.weight, theirs.LayerNorm.bias, theirs.LayerNorm.eps)
    t = tensors(model, "layer.2.output.LayerNorm")
    expected = layer_norm(z + literal(layer_norm(z, *norm), t, relu), *norm)
    torch.testing.assert_close(ours(inside, x), expected)


@pytest.mark.parametrize("kind", ["pfeiffer", "lin"])
def test_before_layer_norms_an_adapter_is_on_the_output_of_the_block(kind):
    base, model = pair("gpt2", kind=kind, layer_norm=kind == "lin")
    x = torch.randn(2, 5, 16).double()
    z = base.transformer.h[1](x)
    t = tensors(model, "h.1.bottleneck_adapter")
    read = layer_norm(z, t["norm.weight"], t["norm.bias"], 1e-5) if kind == "lin" else z
    torch.testing.assert_close(model.base_model.model.transformer.h[1](x), z + literal(read, t, relu))


def test_a_series_adapter_follows_the_last_projection():
    base, model = pair("llama", kind="series", activation="tanh", adapter_bias=False)
    theirs, ours = base.model.layers[0].mlp, model.base_model.model.model.layers[0].mlp
    x = torch.randn(3, 16).double()
    h = theirs(x)
    torch.testing.assert_close(ours(x), h + literal(h, tensors(model, "0.mlp.down_proj"), torch.tanh))


def test_series_adapters_on_inputs_come_before_the_other_projections():
    base, model = pair("llama", kind="series-inputs", activation="tanh", adapter_bias=False)
    theirs, ours = base.model.layers[0].mlp, model.base_model.model.model.layers[0].mlp
    x = torch.randn(3, 16).double()
    gate = F.silu(theirs.gate_proj(x + literal(x, tensors(model, "0.mlp.gate_proj"), torch.tanh)))
    up = theirs.up_proj(x + literal(x, tensors(model, "0.mlp.up_proj"), torch.tanh))
    h = theirs.down_proj(gate * up)
    torch.testing.assert_close(ours(x), h + literal(h, tensors(model, "0.mlp.down_proj"), torch.tanh))


def test_a_parallel_adapter_is_added_to_the_projection():
    base, model = pair("llama", kind="parallel", activation="tanh", adapter_bias=False, scaling=2.0)
    ours = model.base_model.model.model.layers[0].mlp
    for name, width in (("up_proj", 16), ("down_proj", 24)):
        x = torch.randn(3, width).double()
        expected = base.model.layers[0].mlp.get_submodule(name)(x)
        expected = expected + 2.0 * literal(x, tensors(model, f"0.mlp.{name}"), torch.tanh)
        torch.testing.assert_close(ours.get_submodule(name)(x), expected)


def test_dropout_acts_on_the_input_of_the_first_projection():
    _, model = pair("llama", kind="parallel", adapter_dropout=0.5)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    assert isinstance(layer.bottleneck_adapter["default"].dropout, nn.Dropout)
    x = torch.ones(1, 16).double()
    t = tensors(model, "0.mlp.up_proj")
    layer.train()
    torch.manual_seed(0)
    found = layer(x)
    torch.manual_seed(0)
    expected = layer.base_layer(x) + literal(F.dropout(x, 0.5), t, relu)
    torch.testing.assert_close(found, expected)

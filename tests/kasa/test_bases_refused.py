"""Layers that KaSA does not adapt are refused by name and kind, and nothing is skipped in silence."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from kasatune import KasaConfig
from kasatune.errors import ModelError
from kasatune.kasa.layer import KasaLayer
from kasatune.weights.base_weight import refusal
from tests.kasa.quantized import logits

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
}


def mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**TINY, num_local_experts=4, num_experts_per_tok=2)).eval()


def qwen(dense=()):
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        **TINY, moe_intermediate_size=24, num_experts=6, num_experts_per_tok=2, head_dim=8, mlp_only_layers=list(dense)
    )
    return Qwen3MoeForCausalLM(config).eval()


def adapted(base, targets, **settings):
    return get_peft_model(base, KasaConfig(r=4, target_modules=targets, **settings))


def layers(model):
    return [name for name, module in model.named_modules() if isinstance(module, KasaLayer)]


# Kinds of layers


class Mixed(nn.Module):
    def __init__(self, odd):
        super().__init__()
        self.odd = odd
        self.plain = nn.Linear(16, 16)


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16))


def float8():
    layer = nn.Linear(16, 16)
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return layer


def whole_numbers():
    layer = nn.Linear(16, 16)
    layer.weight = nn.Parameter(torch.ones(16, 16, dtype=torch.int8), requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (nn.Embedding(20, 16), r"odd is an Embedding; .*modules_to_save, or adapt it with LoRA"),
        (nn.Conv1d(16, 16, 3), r"odd is a Conv1d \(convolution\) of kernel \[3\], .*kernel 1, stride 1"),
        (nn.Conv2d(16, 16, 1, stride=2), r"odd is a Conv2d \(convolution\) of kernel \[1, 1\], stride \[2, 2\]"),
        (nn.Conv1d(16, 16, 1, groups=4), r"odd is a Conv1d \(convolution\) .*groups 4; KaSA adapts"),
        (nn.Conv2d(16, 16, 1, padding=1), r"odd is a Conv2d \(convolution\) .*no padding and one group"),
        (nn.Conv3d(16, 16, 1), r"odd is a Conv3d \(convolution\)"),
        (nn.Bilinear(16, 16, 16), r"odd is a Bilinear; KaSA adapts linear layers"),
        (Custom(), r"odd is a Custom; KaSA adapts linear layers"),
        (nn.LayerNorm(16), r"odd is a LayerNorm"),
        (float8(), r"odd is a Linear quantized to float8_e4m3fn, for which PEFT has no backend"),
        (whole_numbers(), r"odd is a Linear quantized to int8, for which PEFT has no backend; quantize with bits"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_of_another_kind_is_refused_with_its_name(odd, reason):
    model = Mixed(odd)
    with pytest.raises(ModelError, match=reason):
        adapted(model, ["plain", "odd"])
    assert type(model.plain) is nn.Linear


def test_a_weight_of_a_foreign_tensor_class_is_refused():
    class Packed(nn.Parameter):
        pass

    layer = nn.Linear(8, 8)
    layer.weight = Packed(torch.randn(8, 8))
    assert "quantized to Packed, for which PEFT has no backend" in str(refusal(layer))


# Mixtures of experts


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "gate_up_proj"],
        ["down_proj"],
        ["experts"],
        ["model.layers.0.mlp.experts.down_proj"],
        r".*experts.*",
        r".*\.mlp\.experts\.down_proj",
    ],
    ids=str,
)
def test_targeting_stacked_experts_is_refused_with_what_to_target_instead(targets):
    model = mixtral()
    before = logits(model)
    with pytest.raises(ModelError) as fault:
        adapted(model, targets)
    message = str(fault.value)
    assert "model.layers.0.mlp.experts" in message and "MixtralExperts" in message
    assert "4 matrices in one parameter [4, " in message
    assert "attention projections" in message and "target_parameters" in message
    assert torch.equal(logits(model), before) and not layers(model)


@pytest.mark.parametrize(("make", "targets"), [(mixtral, ["q_proj", "w1"]), (qwen, ["q_proj", "gate_proj", "up_proj"])])
def test_names_that_experts_had_before_they_were_stacked_are_refused(make, targets):
    with pytest.raises(ModelError, match=r"(w1|gate_proj, up_proj) matches no layer, because this model stacks its "):
        adapted(make(), targets)


@pytest.mark.parametrize("make", [mixtral, qwen])
def test_all_linear_warns_that_experts_are_not_adapted(make):
    with pytest.warns(
        UserWarning, match=r"expert weights .* not adapted: model\.layers\.0\.mlp\.experts\.gate_up_proj"
    ):
        model = adapted(make(), "all-linear")
    assert len(layers(model)) == 8
    logits(model)


def test_a_dense_block_beside_experts_is_adapted_and_the_experts_are_named():
    with pytest.warns(UserWarning, match=r"not adapted: model\.layers\.1\.mlp\.experts\.gate_up_proj .*, and 1 more"):
        model = adapted(qwen(dense=[0]), ["gate_proj"])
    assert layers(model) == ["base_model.model.model.layers.0.mlp.gate_proj"]


def test_the_attention_of_a_mixture_is_adapted_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = adapted(mixtral(), ["q_proj", "v_proj"])
    assert len(layers(model)) == 4

"""4-bit weights that bitsandbytes packs for its CPU kernel: unpacked before training and before saving."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kasatune.weights.bitsandbytes_cpu import dequantize_packed, is_packed, unpack_for_training_and_saving
from kasatune.weights.quantized_weight import weight_of

bnb = pytest.importorskip("bitsandbytes")


@pytest.fixture(params=["nf4", "fp4"])
def layer(request):
    torch.manual_seed(0)
    linear = nn.Linear(128, 64)
    quantized = bnb.nn.Linear4bit(128, 64, quant_type=request.param, compute_dtype=torch.float32)
    quantized.load_state_dict(linear.state_dict())
    quantized = quantized.to("cpu").eval()
    unpack_for_training_and_saving(quantized)
    return quantized


def evaluated(layer):
    """The outputs in evaluation, after which the weight is packed."""
    with torch.no_grad():
        outputs = layer.eval()(torch.randn(3, 128, generator=torch.Generator().manual_seed(1)))
    if not is_packed(layer):
        pytest.skip("bitsandbytes packs no weights on this processor")
    return outputs


def test_reading_a_packed_weight_does_not_unpack_it(layer):
    before = weight_of(layer).read().float()
    evaluated(layer)
    W = weight_of(layer).read()
    assert is_packed(layer)
    assert torch.equal(W, dequantize_packed(layer))
    assert float((W - before).norm() / before.norm()) < 5e-3  # the packed scales are in bfloat16


@pytest.mark.parametrize("training", [True, False])
def test_a_pass_that_trains_unpacks_and_has_the_gradient_of_the_dequantized_weight(layer, training):
    evaluated(layer)
    W = weight_of(layer).read()
    x = torch.randn(3, 128, requires_grad=True)
    layer.train(training)(x).sum().backward()
    assert not is_packed(layer)
    torch.testing.assert_close(x.grad, W.sum(0).expand(3, -1), rtol=1e-4, atol=1e-4)


def test_evaluations_before_and_after_training_are_equal_bit_for_bit(layer):
    first = evaluated(layer)
    layer.train()(torch.randn(3, 128, requires_grad=True)).sum().backward()
    assert torch.equal(evaluated(layer), first)


def test_a_state_dict_of_a_packed_layer_is_that_of_the_same_weight(layer):
    evaluated(layer)
    W = weight_of(layer).read()
    layer.state_dict()
    torch.testing.assert_close(weight_of(layer).read().float(), W, rtol=1e-5, atol=1e-6)


def test_copies_keep_the_hooks_and_marking_twice_adds_none(layer):
    evaluated(layer)
    twin = copy.deepcopy(layer)
    unpack_for_training_and_saving(twin)
    twin.train()(torch.randn(3, 128, requires_grad=True)).sum().backward()
    assert not is_packed(twin)


def test_layers_without_4_bit_weights_get_no_hooks():
    linear = nn.Linear(2, 2)
    before = dict(vars(linear))
    unpack_for_training_and_saving(linear)
    assert vars(linear) == before


def test_a_layer_whose_rows_are_no_complete_blocks_evaluates_without_the_kernel():
    torch.manual_seed(0)
    narrow = bnb.nn.Linear4bit(32, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    narrow.weight = bnb.nn.Params4bit(torch.randn(64, 32), requires_grad=False, quant_type="nf4")
    narrow = narrow.to("cpu").eval()
    unpack_for_training_and_saving(narrow)
    W = bnb.functional.dequantize_4bit(narrow.weight.data, narrow.weight.quant_state)
    x = torch.randn(3, 32)
    with torch.no_grad():
        torch.testing.assert_close(narrow(x), x @ W.T.float(), rtol=1e-4, atol=1e-4)

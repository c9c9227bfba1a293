"""The fused function gives what plain autograd gives, values and gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from kasatune.kasa.functional import Factors
from kasatune.kasa.kernel import Tail, adapted_linear

IN, OUT, R = 7, 5, 3


def problem(core: str, tailed: bool, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def random(*shape, trained=True):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_(trained)

    factors = Factors(random(R, IN), random(R) if core == "diagonal" else random(R, R), random(OUT, R))
    tail = Tail(random(OUT, R, trained=False), random(R, IN, trained=False)) if tailed else None
    return random(2, 4, IN), factors, tail


def plain(x, base, factors, tail, scaling):
    A, sigma, B = factors
    core = torch.diag(sigma) if sigma.ndim == 1 else sigma
    change = scaling * F.linear(F.linear(F.linear(x, A), core), B)
    if tail is not None:
        change = change - F.linear(F.linear(x, tail.V), tail.U)
    return base(x) + change


def bases():
    torch.manual_seed(1)
    hooked = nn.Linear(IN, OUT)
    hooked.register_forward_hook(lambda *_: None)
    layers = {
        "linear": nn.Linear(IN, OUT),
        "without bias": nn.Linear(IN, OUT, bias=False),
        "conv1d": Conv1D(OUT, IN),
        "hooked": hooked,
        "module": nn.Sequential(nn.Linear(IN, OUT), nn.Identity()),
    }
    return {name: layer.double().requires_grad_(False) for name, layer in layers.items()}


CASES = list(itertools.product(bases(), ["diagonal", "dense"], [True, False]))


@pytest.mark.parametrize(("base", "core", "tailed"), CASES)
def test_values_and_gradients_are_those_of_plain_autograd(base, core, tailed):
    layer = bases()[base]
    results = []
    for function in (plain, adapted_linear):
        x, factors, tail = problem(core, tailed)
        y = function(x, layer, factors, tail, 0.7)
        y.square().sum().backward()
        results.append([y, x.grad, *(f.grad for f in factors)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("core", "tailed"), [("diagonal", True), ("dense", False)])
def test_gradients_are_those_of_finite_differences(core, tailed):
    layer = bases()["linear"]
    x, factors, tail = problem(core, tailed)
    assert torch.autograd.gradcheck(lambda x, *f: adapted_linear(x, layer, Factors(*f), tail, 0.7), (x, *factors))


def test_a_trained_bias_gets_its_gradient():
    layer = nn.Linear(IN, OUT).double()
    layer.weight.requires_grad_(False)
    x, factors, tail = problem("diagonal", True)
    adapted_linear(x, layer, factors, tail, 0.7).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((OUT,), 8.0, dtype=torch.float64))


def test_the_base_output_is_not_written_over():
    kept = []
    layer = bases()["linear"]
    layer.register_forward_hook(lambda _m, _i, output: kept.append((output, output.clone())))
    x, factors, tail = problem("diagonal", True)
    adapted_linear(x, layer, factors, tail, 0.7)
    assert torch.equal(*kept[0])


@pytest.mark.parametrize("frozen", ["x", "A", "sigma", "B"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_does(frozen):
    x, factors, tail = problem("diagonal", True)
    tensors = {"x": x, "A": factors.A, "sigma": factors.sigma, "B": factors.B}
    tensors[frozen].requires_grad_(False)
    adapted_linear(x, bases()["linear"], factors, tail, 0.7).sum().backward()
    assert {name for name, t in tensors.items() if t.grad is None} == {frozen}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sixteen_bit_base_is_rounded_once(dtype):
    layer = bases()["linear"].to(dtype)
    x, factors, tail = problem("diagonal", True, torch.float32)
    x = x.detach().to(dtype).requires_grad_()
    y = adapted_linear(x, layer, factors, tail, 0.7)
    wide = layer(x).float() + plain(x.float(), lambda _: 0.0, factors, tail, 0.7)
    assert y.dtype == dtype
    torch.testing.assert_close(y, wide.to(dtype), rtol=1e-2, atol=1e-2)
    y.sum().backward()
    assert x.grad.dtype == dtype and factors.A.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["linear", "hooked"])
def test_an_adapter_narrower_than_its_base_gives_what_the_base_computes_in(name):
    layer = bases()[name].float()
    x, factors, tail = problem("diagonal", True, torch.float32)
    narrow = Factors(*(t.detach().bfloat16().requires_grad_() for t in factors))
    y = adapted_linear(x, layer, narrow, tail, 0.7)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, plain(x, layer, factors, tail, 0.7), rtol=5e-2, atol=5e-1)
    y.sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.bfloat16 for t in narrow)


def test_saved_for_backward_are_the_input_and_the_narrow_activation():
    layer = nn.Linear(64, 64).requires_grad_(False)
    x = torch.randn(100, 64, requires_grad=True)
    factors = Factors(
        torch.randn(4, 64, requires_grad=True),
        torch.randn(4, requires_grad=True),
        torch.randn(64, 4, requires_grad=True),
    )
    tail = Tail(torch.randn(64, 4), torch.randn(4, 64))
    known = {t.data_ptr() for t in (*factors, *tail, layer.weight)}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        adapted_linear(x, layer, factors, tail, 0.7)
    own = sum(t.numel() for t in saved if t.data_ptr() not in known)
    assert own == x.numel() + 100 * 4

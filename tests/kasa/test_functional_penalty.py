"""Penalty terms and their closed-form gradients against the float64 oracle and autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kasatune.errors import InputError
from kasatune.kasa import oracle
from kasatune.kasa.functional import Factors, orthogonality_norms, penalty_gradients, penalty_terms
from tests.factors import factor_lists, random_factors

conventions = pytest.mark.parametrize("convention", ["paper", "authors"])


@conventions
@given(layers=factor_lists())
def test_terms_equal_the_oracle(convention, layers):
    terms = penalty_terms(layers, convention)
    assert terms.sigma.dtype == terms.orthogonality.dtype == torch.float32
    torch.testing.assert_close(terms.sigma.double(), oracle.penalty(layers, 1, 0, convention), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        terms.orthogonality.double(), oracle.penalty(layers, 0, 1, convention), rtol=1e-5, atol=1e-5
    )


@conventions
@given(layers=factor_lists(), beta=st.floats(0, 2), gamma=st.floats(0, 2))
def test_gradients_equal_autograd_of_the_terms(convention, layers, beta, gamma):
    leaves = [Factors(*(f.clone().requires_grad_() for f in layer)) for layer in layers]
    terms = penalty_terms(leaves, convention)
    (beta * terms.sigma + gamma * terms.orthogonality).backward()
    gradients = penalty_gradients(leaves, beta, gamma, convention)
    for layer, gradient in zip(leaves, gradients, strict=True):
        for leaf, value in zip(layer, gradient, strict=True):
            assert not value.requires_grad
            assert value.shape == leaf.shape
            torch.testing.assert_close(value, leaf.grad, rtol=1e-4, atol=1e-5)


@conventions
@given(layers=factor_lists(dtype=torch.float64))
def test_gradients_equal_autograd_of_the_oracle(convention, layers):
    leaves = [Factors(*(f.clone().requires_grad_() for f in layer)) for layer in layers]
    oracle.penalty(leaves, 0.7, 0.3, convention).backward()
    for layer, gradient in zip(leaves, penalty_gradients(leaves, 0.7, 0.3, convention), strict=True):
        for leaf, value in zip(layer, gradient, strict=True):
            torch.testing.assert_close(value, leaf.grad, rtol=1e-7, atol=1e-9)


@conventions
@pytest.mark.parametrize("core", ["diagonal", "dense"])
@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_terms_pass_the_numeric_gradient_check(convention, core, seed):
    layers = [random_factors(5, 4, 2, core, seed + i, torch.float64) for i in range(2)]
    flat = [f.requires_grad_() for layer in layers for f in layer]

    def terms(*tensors):
        return tuple(penalty_terms([Factors(*tensors[:3]), Factors(*tensors[3:])], convention))

    assert torch.autograd.gradcheck(terms, flat)


@conventions
def test_sixteen_bit_factors_are_penalised_in_float32(convention):
    layers = [random_factors(40, 30, 8, "diagonal", i, torch.bfloat16) for i in range(3)]
    terms = penalty_terms(layers, convention)
    assert terms.orthogonality.dtype == torch.float32
    torch.testing.assert_close(
        terms.orthogonality.double(), oracle.penalty(layers, 0, 1, convention), rtol=1e-6, atol=0
    )
    gradient = penalty_gradients(layers, 1.0, 1.0, convention)[0]
    assert {f.dtype for f in gradient} == {torch.bfloat16}


@conventions
def test_gradient_is_zero_where_the_norm_is_zero(convention):
    orthonormal = torch.eye(3)  # r = in = out, so that the norm is zero under both conventions
    layer = Factors(*(t.clone().requires_grad_() for t in (orthonormal, torch.zeros(3), orthonormal)))
    terms = penalty_terms([layer], convention)
    assert terms.orthogonality.item() == 0
    terms.orthogonality.backward()
    [gradient] = penalty_gradients([layer], 1.0, 1.0, convention)
    for leaf, value in zip((layer.A, layer.B), (gradient.A, gradient.B), strict=True):
        assert torch.equal(value, torch.zeros_like(value))
        assert torch.equal(leaf.grad, value)


def test_authors_norm_of_orthonormal_factors_is_the_floor():
    n, r = 768, 8
    F = torch.linalg.qr(torch.randn(n, r, generator=torch.Generator().manual_seed(0))).Q
    norms = orthogonality_norms(Factors(F.mT.contiguous(), torch.ones(r), F), "authors")
    assert [norm.item() for norm in norms] == pytest.approx([(n - r) ** 0.5] * 2, rel=1e-6)
    assert max(norm.item() for norm in orthogonality_norms(Factors(F.mT, torch.ones(r), F), "paper")) < 1e-5


def test_the_paper_sums_over_layers_and_the_authors_average():
    layer = random_factors(6, 5, 2, "diagonal", 0)
    for convention, factor in (("paper", 3), ("authors", 1)):
        one, three = penalty_terms([layer], convention), penalty_terms([layer] * 3, convention)
        torch.testing.assert_close(three.sigma, factor * one.sigma)
        torch.testing.assert_close(three.orthogonality, factor * one.orthogonality)


def test_no_layers_give_zero():
    assert [term.item() for term in penalty_terms([], "authors")] == [0, 0]
    assert penalty_gradients([], 1.0, 1.0, "authors") == []


def test_layers_of_one_shape_cost_no_more_kernels_than_one_layer():
    def kernels(count):
        layers = [random_factors(6, 5, 2, "diagonal", i) for i in range(count)]
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            penalty_gradients(layers, 1.0, 1.0, "paper")
        return sum(event.count for event in profile.key_averages() if event.key in ("aten::bmm", "aten::matmul"))

    assert kernels(40) == kernels(1)


@pytest.mark.parametrize("call", [penalty_terms, lambda layers, c: penalty_gradients(layers, 1.0, 1.0, c)])
def test_an_unknown_convention_is_refused(call):
    with pytest.raises(InputError, match=r"'peper'.*'paper' or 'authors'"):
        call([], "peper")

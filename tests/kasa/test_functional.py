"""Truncation count, initialization and weight update: published numbers and the float64 oracle."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kasatune.errors import InputError
from kasatune.kasa import oracle
from kasatune.kasa.functional import drop_count, initial_factors, update
from kasatune.linalg import tail_svd
from tests.factors import factor_lists, random_factors

# Truncation


@pytest.mark.parametrize(
    ("out_features", "in_features", "r", "paper", "authors"),
    [
        (768, 768, 8, 8, 8),
        (11008, 4096, 32, 32, 32),
        (4096, 11008, 32, 32, 0),  # LLaMA-2 down_proj
        (1024, 4096, 32, 32, 0),  # LLaMA-3 k_proj
        (1020, 1024, 8, 8, 4),
        (1016, 1024, 8, 8, 0),
    ],
)
def test_drop_count_of_known_shapes(out_features, in_features, r, paper, authors):
    assert drop_count(out_features, in_features, r, "paper") == paper
    assert drop_count(out_features, in_features, r, "authors") == authors


@pytest.mark.parametrize("convention", ["paper", "authors"])
@given(out_features=st.integers(2, 30), in_features=st.integers(2, 30), data=st.data())
def test_dropped_and_kept_triplets_add_up_to_all(convention, out_features, in_features, data):
    k = min(out_features, in_features)
    r = data.draw(st.integers(1, k - 1))
    kept = oracle.kept_count(torch.empty(out_features, in_features), r, convention)
    assert drop_count(out_features, in_features, r, convention) == k - kept


def test_drop_count_refuses_an_unknown_convention():
    with pytest.raises(InputError, match=r"'ours'.*'paper' or 'authors'"):
        drop_count(4, 4, 1, "ours")


# Initialization


@pytest.mark.parametrize(("core", "sigma_shape"), [("diagonal", (8,)), ("dense", (8, 8))])
def test_initial_factors_have_their_shapes_and_a_zero_update(core, sigma_shape):
    factors = initial_factors(30, 20, 8, core)
    assert factors.A.shape == (8, 20)
    assert factors.sigma.shape == sigma_shape
    assert factors.B.shape == (30, 8)
    assert torch.equal(update(factors, 2.0), torch.zeros(30, 20))


def test_initial_A_is_uniform_and_sigma_is_normal():
    factors = initial_factors(4, 900, 400, "diagonal", generator=torch.Generator().manual_seed(0))
    bound = 1 / math.sqrt(900)
    assert factors.A.abs().max() <= bound
    assert factors.A.abs().max() > 0.999 * bound
    assert factors.A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert factors.A.mean().abs() < 0.01 * bound
    assert factors.sigma.std().item() == pytest.approx(1, rel=0.1)
    assert factors.sigma.mean().item() == pytest.approx(0, abs=0.15)


def test_a_dense_core_starts_as_the_diagonal_one():
    diagonal, dense = (
        initial_factors(5, 6, 3, core, generator=torch.Generator().manual_seed(1)) for core in ("diagonal", "dense")
    )
    assert torch.equal(dense.sigma, torch.diag(diagonal.sigma))
    assert torch.equal(dense.A, diagonal.A)


def test_one_seed_gives_the_same_factors_in_every_dtype():
    wide, narrow = (
        initial_factors(5, 6, 3, "diagonal", generator=torch.Generator().manual_seed(1), dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert narrow.A.dtype == narrow.sigma.dtype == narrow.B.dtype == torch.bfloat16
    assert torch.equal(wide.A.bfloat16(), narrow.A)
    assert torch.equal(wide.sigma.bfloat16(), narrow.sigma)


def test_the_global_generator_is_used_when_none_is_given():
    torch.manual_seed(3)
    first = initial_factors(5, 6, 3, "diagonal")
    second = initial_factors(5, 6, 3, "diagonal")
    torch.manual_seed(3)
    assert torch.equal(initial_factors(5, 6, 3, "diagonal").A, first.A)
    assert not torch.equal(second.A, first.A)


@pytest.mark.parametrize(("core", "sigma_shape"), [("diagonal", (3,)), ("dense", (3, 3))])
def test_nothing_is_drawn_on_the_meta_device(core, sigma_shape):
    state = torch.get_rng_state()
    factors = initial_factors(5, 6, 3, core, device="meta", dtype=torch.float16)
    assert all(f.is_meta and f.dtype == torch.float16 for f in factors)
    assert [tuple(f.shape) for f in factors] == [(3, 6), sigma_shape, (5, 3)]
    assert torch.equal(torch.get_rng_state(), state)


def test_initial_factors_refuse_an_unknown_core():
    with pytest.raises(InputError, match=r"'sparse'.*'diagonal' or 'dense'"):
        initial_factors(5, 6, 3, "sparse")


# Update


@given(layers=factor_lists(dtype=torch.float64, max_layers=1), scaling=st.floats(-4, 4))
def test_update_equals_the_oracle(layers, scaling):
    torch.testing.assert_close(update(layers[0], scaling), oracle.update(layers[0], scaling), rtol=1e-12, atol=1e-12)


def test_update_keeps_dtype_and_gradient():
    factors = random_factors(6, 5, 2, "diagonal", 0, torch.bfloat16)
    for f in factors:
        f.requires_grad_()
    dW = update(factors, 2.0)
    assert dW.shape == (6, 5)
    assert dW.dtype == torch.bfloat16
    dW.float().sum().backward()
    assert all(f.grad is not None for f in factors)


@given(seed=st.integers(0, 2**31), core=st.sampled_from(["diagonal", "dense"]))
def test_weight_minus_tail_plus_update_is_the_adapted_weight(seed, core):
    W = torch.randn(12, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    factors = random_factors(12, 9, 3, core, seed, torch.float64)
    U, S, Vh = tail_svd(W, 3)
    torch.testing.assert_close(
        W - (U * S) @ Vh + update(factors, 1.5), oracle.adapted_weight(W, factors, 1.5, "paper"), rtol=1e-9, atol=1e-9
    )

import math

import pytest
import torch

from kasatune.errors import InputError
from kasatune.kasa.initialization import initial_factors
from kasatune.kasa.update import update


@pytest.mark.parametrize(("core", "sigma_shape"), [("diagonal", (8,)), ("dense", (8, 8))])
def test_shapes_and_zero_update(core, sigma_shape):
    factors = initial_factors(30, 20, 8, core)
    assert factors.A.shape == (8, 20)
    assert factors.sigma.shape == sigma_shape
    assert factors.B.shape == (30, 8)
    assert torch.equal(update(factors, 2.0), torch.zeros(30, 20))


def test_the_laws_of_A_and_sigma():
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


def test_an_unknown_core_is_refused():
    with pytest.raises(InputError, match=r"'sparse'.*'diagonal' or 'dense'"):
        initial_factors(5, 6, 3, "sparse")

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kasatune.kasa import oracle
from kasatune.linalg import effective_rank, energy_share, product_svd, singular_values, subspace_alignment
from tests.factors import random_factors, with_spectrum


def test_singular_values_are_complete_and_descending():
    S = [9.0, 4.0, 1.0, 0.0]
    for W in (with_spectrum(7, 4, S), with_spectrum(4, 7, S)):
        torch.testing.assert_close(singular_values(W), torch.tensor(S, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert singular_values(torch.randn(3, 5).bfloat16()).dtype == torch.float64


def test_energy_share():
    S = torch.tensor([3.0, 2.0, 1.0, 1.0])
    assert energy_share(S, 2, 2) == pytest.approx(2 / 15)
    assert energy_share(S, 0, 4) == 1
    assert energy_share(S, 4, 0) == 0
    assert energy_share(torch.zeros(3), 1, 2) == 0


def test_effective_rank_of_known_spectra():
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([5.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(
        math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    )
    assert effective_rank(torch.zeros(3)) == 0


@given(S=st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=1, max_size=9).filter(lambda S: sum(S) > 1e-6))
def test_effective_rank_equals_the_oracle(S):
    S = torch.tensor(S, dtype=torch.float64)
    assert effective_rank(S) == pytest.approx(oracle.effective_rank(S).item(), rel=1e-9)


@given(
    seed=st.integers(0, 2**31),
    core=st.sampled_from(["diagonal", "dense"]),
    scaling=st.floats(-3, 3),
    shape=st.tuples(st.integers(3, 12), st.integers(3, 12), st.integers(1, 3)),
)
def test_product_svd_of_the_factors_is_the_svd_of_the_update(seed, core, scaling, shape):
    A, sigma, B = factors = random_factors(*shape, core, seed, torch.float64)
    dW = oracle.update(factors, scaling)
    U, S, Vh = product_svd(scaling * B @ oracle.core_matrix(sigma), A)
    r = shape[2]
    bound = 1e-11 * (1 + dW.abs().max().item())
    torch.testing.assert_close((U * S) @ Vh, dW, rtol=0, atol=bound)
    torch.testing.assert_close(S, torch.linalg.svdvals(dW)[:r], rtol=0, atol=bound)
    torch.testing.assert_close(U.mT @ U, torch.eye(r, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(Vh @ Vh.mT, torch.eye(r, dtype=torch.float64), rtol=0, atol=1e-12)


def test_product_svd_returns_at_least_float32():
    A, _, B = random_factors(9, 8, 2, "diagonal", 0, torch.bfloat16)
    assert {t.dtype for t in product_svd(B, A)} == {torch.float32}


def test_product_svd_of_low_rank_adapters():
    left, right = torch.randn(20, 6), torch.randn(6, 15)
    U, S, Vh = product_svd(left, right)
    assert [tuple(t.shape) for t in (U, S, Vh)] == [(20, 6), (6,), (6, 15)]
    torch.testing.assert_close((U * S) @ Vh, left @ right, rtol=1e-5, atol=1e-5)


def test_subspace_alignment():
    basis = torch.eye(6)
    assert subspace_alignment(basis[:, :2], 5 * basis[:, :2]) == pytest.approx(1)
    assert subspace_alignment(basis[:, :2], basis[:, 2:5]) == pytest.approx(0)
    assert subspace_alignment(basis[:, :2], basis[:, 1:5]) == pytest.approx(0.5)
    angle = 0.3
    tilted = math.cos(angle) * basis[:, :1] + math.sin(angle) * basis[:, 1:2]
    assert subspace_alignment(basis[:, :1], tilted) == pytest.approx(math.cos(angle) ** 2)


@pytest.mark.parametrize("smallest", [1e-1, 2e-4, 5e-5, 1e-7, 1e-9])
@pytest.mark.parametrize("shape", [(40, 40), (40, 90), (90, 40)])
def test_singular_values_hold_eight_digits_however_small(smallest, shape):
    S = torch.logspace(0, math.log10(smallest), 40, dtype=torch.float64)
    computed = singular_values(with_spectrum(*shape, S.tolist()))
    limit = 1e-8 if smallest > 1e-8 else 1e-6
    assert float(((computed - S) / S).abs().max()) < limit

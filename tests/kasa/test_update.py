import torch
from hypothesis import given
from hypothesis import strategies as st

from kasatune.kasa import oracle
from kasatune.kasa.update import update
from kasatune.linalg import tail_svd
from tests.factors import factor_lists, random_factors


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

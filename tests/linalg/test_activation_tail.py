"""The component that activations use least: the literal minimum, both sides, the ridge, and refusals."""

from __future__ import annotations

import pytest
import torch

from kasatune.errors import ModelError
from kasatune.linalg import tail_svd
from kasatune.linalg.activation_tail import ActivationMoments, activation_tail, side_of


def sample(rows, columns, tokens, seed=0, spread=3.0):
    """A weight and activations whose directions differ by orders of magnitude, float64."""
    draw = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(columns, columns, generator=draw, dtype=torch.float64)).Q
    scales = torch.logspace(0, -spread, columns, dtype=torch.float64)
    x = torch.randn(tokens, columns, generator=draw, dtype=torch.float64) * scales @ basis.T
    return W, x


def moments(W, x):
    side = side_of(W.shape)
    values = x if side == "inputs" else x @ W.T
    return ActivationMoments(side, values.T @ values / len(x), float(x.square().mean()), len(x))


def component(tail):
    return (tail.U * tail.S) @ tail.Vh


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (12, 12)])
@pytest.mark.parametrize("d", [1, 3])
def test_no_component_of_that_rank_has_smaller_outputs(shape, d):
    W, x = sample(*shape, tokens=400)
    T = component(activation_tail(W, moments(W, x), d).tail)
    assert torch.linalg.matrix_rank(T) == d
    assert torch.linalg.matrix_rank(W - T) == min(shape) - d
    # Eckart-Young: with C = E[x x^T] + 1e-3 mean(diag C) I, the least ||T C^(1/2)||^2 is the sum of the d smallest
    # squared singular values of W C^(1/2).
    C = x.T @ x / len(x)
    C = C + 1e-3 * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)
    root = torch.linalg.cholesky(C)
    least = torch.linalg.svdvals(W @ root)[-d:].square().sum()
    assert (T @ root).square().sum() == pytest.approx(float(least), rel=1e-8)
    by_size = component(tail_svd(W, d))
    assert (x @ T.T).square().sum() < (x @ by_size.T).square().sum()


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_isotropic_activations_give_the_choice_by_magnitude(shape):
    W, _ = sample(*shape, tokens=1)
    eye = torch.eye(shape[1], dtype=torch.float64)
    side = side_of(shape)
    isotropic = ActivationMoments(side, eye if side == "inputs" else W @ W.T, 1.0, 10_000)
    T = component(activation_tail(W, isotropic, 3).tail)
    torch.testing.assert_close(T, component(tail_svd(W, 3)), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_within_the_null_space_of_few_tokens_magnitude_decides(shape):
    W, x = sample(*shape, tokens=2, spread=0.0)
    T = component(activation_tail(W, moments(W, x), 2).tail)
    assert (x @ T.T).norm() < 0.05 * (x @ W.T).norm()
    assert T.norm() < 1.5 * component(tail_svd(W, 2)).norm()


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_the_share_is_that_of_the_outputs(shape):
    W, x = sample(*shape, tokens=400)
    result = activation_tail(W, moments(W, x), 2)
    T = component(result.tail)
    assert result.share == pytest.approx(float((x @ T.T).square().sum() / (x @ W.T).square().sum()), rel=1e-6)
    assert result.cut[0] <= result.cut[1]


def test_a_float32_weight_gives_float32_triplets_and_stays_as_it_is():
    W, x = sample(12, 20, tokens=400)
    narrow = W.float()
    before = narrow.clone()
    tail = activation_tail(narrow, moments(W, x), 2).tail
    assert {part.dtype for part in tail} == {torch.float32}
    assert torch.equal(narrow, before)


@pytest.mark.parametrize("d", [0, 12])
def test_a_number_of_triplets_out_of_range_is_refused(d):
    W, x = sample(12, 20, tokens=40)
    with pytest.raises(ModelError, match="between 1 and 11"):
        activation_tail(W, moments(W, x), d, name="a.b")


def test_moments_of_another_layer_and_values_that_are_not_finite_are_refused():
    W, x = sample(12, 20, tokens=40)
    with pytest.raises(ModelError, match=r"outputs \(12 x 12\), got inputs"):
        activation_tail(W, moments(W.T, x[:, :12]), 2)
    bad = moments(W, x)
    bad.moments[0, 0] = torch.nan
    with pytest.raises(ModelError, match="NaN"):
        activation_tail(W, bad, 2)

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kasatune.errors import ModelError
from kasatune.kasa import oracle
from kasatune.linalg import tail_svd, tail_svd_many


def check_tail(W, r, tail):
    """The laws every tail obeys: shapes, orthonormal factors, W V = U S, order, and the least possible energy."""
    U, S, Vh = (t.double() for t in tail)
    W = W.double()
    full = torch.linalg.svdvals(W)
    eps = torch.finfo(tail.S.dtype).eps
    tolerance = 40 * eps
    assert U.shape == (W.shape[0], r)
    assert S.shape == (r,)
    assert Vh.shape == (r, W.shape[1])
    assert all(torch.isfinite(t).all() for t in tail)
    assert (S[:-1] >= S[1:]).all()
    assert (S >= 0).all()
    eye = torch.eye(r, dtype=torch.float64)
    assert (U.mT @ U - eye).abs().max() < tolerance
    assert (Vh @ Vh.mT - eye).abs().max() < tolerance
    # rounding an exact singular vector to the result's dtype already costs eps ||W||; a float64 tail is LAPACK's own,
    # which leaves up to 42 eps ||W|| (seen at 36 x 4)
    residual = (100 * eps if tail.S.dtype == torch.float64 else tolerance) * full[0] * r**0.5
    assert (W @ Vh.mT - U * S).norm() <= residual
    assert (W.mT @ U - Vh.mT * S).norm() <= residual
    assert (S - full[-r:]).abs().max() <= eps * full[-r] + 1e-13 * full[0]
    remainder = W - (U * S) @ Vh
    assert remainder.square().sum() == pytest.approx(full[:-r].square().sum().item(), rel=1e-6)
    return full


def check_component(W, r, tail, bound=1e-4):
    U, S, Vh = (t.double() for t in tail)
    expected = W.double() - oracle.world_weight(W, r, "paper")
    assert ((U * S) @ Vh - expected).norm() <= bound * expected.norm()


def relative_gap(full, r):
    return ((full[-r - 1] - full[-r]) / full[-r - 1]).item()


@given(
    shape=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_random_weights_of_every_shape_and_dtype(shape, dtype, seed, data):
    r = data.draw(st.integers(1, min(shape) - 1))
    W = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    tail = tail_svd(W, r)
    assert tail.S.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    full = check_tail(W, r, tail)
    if relative_gap(full, r) > 1e-3:
        check_component(W, r, tail)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    W = torch.randn(6, 5)
    W[2, 3] = bad
    with pytest.raises(ModelError, match=r"'encoder.q'.* 1 value of 30 that is NaN or infinite"):
        tail_svd(W, 2, name="encoder.q")


@pytest.mark.parametrize("r", [-1, 0, 5, 6])
def test_a_rank_out_of_range_is_refused(r):
    with pytest.raises(ModelError, match=rf"'encoder.q' of shape \(6, 5\).*r = {r} .*between 1 and 4"):
        tail_svd(torch.randn(6, 5), r, name="encoder.q")


@pytest.mark.parametrize(
    ("W", "message"),
    [
        (torch.randn(2, 3, 4), r"shape \(2, 3, 4\).*matrix"),
        (torch.empty(6, 5, device="meta"), "meta device.*load the checkpoint"),
        (torch.ones(6, 5, dtype=torch.int8), "torch.int8.*floating-point.*dequantize"),
    ],
)
def test_other_unsuitable_weights_are_refused(W, message):
    with pytest.raises(ModelError, match="'encoder.q'.*" + message):
        tail_svd(W, 2, name="encoder.q")


def test_an_unnamed_weight_is_refused_in_words():
    with pytest.raises(ModelError, match=r"^the weight of shape"):
        tail_svd(torch.randn(6, 5), 9)


def test_the_weight_is_left_alone_and_parameters_are_taken():
    W = torch.nn.Parameter(torch.randn(9, 7))
    before = W.detach().clone()
    tail = tail_svd(W, 2)
    assert torch.equal(W, before)
    assert not any(t.requires_grad for t in tail)
    assert all(t.is_contiguous() for t in tail)


def test_many_gives_what_one_gives_and_reports_progress():
    weights = [torch.randn(shape) for shape in ((9, 7), (6, 20), (9, 7), (12, 12))]
    ranks = [2, 3, 1, 4]
    seen = []
    tails = tail_svd_many(weights, ranks, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for W, r, tail in zip(weights, ranks, tails, strict=True):
        check_tail(W, r, tail)
        check_component(W, r, tail)


def test_many_refuses_before_it_works_and_names_the_layer():
    with pytest.raises(ModelError, match="'b'"):
        tail_svd_many([torch.randn(5, 5), torch.randn(5, 5)], [2, 7], names=["a", "b"])
    with pytest.raises(ValueError):
        tail_svd_many([torch.randn(5, 5)], [2, 7])


def test_many_of_nothing_is_nothing():
    assert tail_svd_many([], []) == []


def test_small_weights_side_by_side_give_what_one_alone_gives_and_leave_the_threads_as_they_were():
    weights = [torch.randn(40, 30 + i, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            tails = tail_svd_many(weights, [4] * 6)
            assert torch.get_num_threads() == threads
            for W, tail in zip(weights, tails, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(tail, tail_svd(W, 4), strict=True))
    finally:
        torch.set_num_threads(before)


def test_a_fault_in_one_of_many_is_raised_and_the_threads_are_as_they_were(monkeypatch):
    def fails(W, r, name):
        raise RuntimeError(name)

    monkeypatch.setattr("kasatune.linalg.tail._decompose", fails)
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="a"):
        tail_svd_many([torch.randn(5, 5)] * 2, [2, 2], names=["a", "b"])
    assert torch.get_num_threads() == before

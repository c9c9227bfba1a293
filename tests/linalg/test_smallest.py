import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kasatune.linalg import smallest, tail_svd, triplets
from kasatune.linalg.direct import direct_triplets, triplets_by_eigh
from kasatune.linalg.smallest import triplets_by_gram, triplets_by_lq, triplets_by_lu
from kasatune.linalg.tail import TailSVD
from kasatune.linalg.triplets import full_triplets
from tests.factors import with_spectrum
from tests.linalg.test_tail import check_component, check_tail, relative_gap

K, R = 160, 8

SPECTRA = {
    "power law": torch.arange(1, K + 1, dtype=torch.float64) ** -1.5,
    "condition 1e4": torch.logspace(0, -4, K, dtype=torch.float64),
    "condition 1e8": torch.logspace(0, -8, K, dtype=torch.float64),
    "condition 1e12": torch.logspace(0, -12, K, dtype=torch.float64),
    "a few tiny values": torch.cat((torch.linspace(2, 1, K - 5), torch.logspace(-9, -12, 5))),
    "tiny and middling values in the tail": torch.cat((torch.linspace(2, 1, K - R), torch.logspace(-1, -12, R))),
    "all equal": torch.ones(K),
    "all equal in the tail": torch.cat((torch.linspace(9, 2, K - R), torch.ones(R))),
    "a tie across the cut": torch.cat((torch.linspace(9, 2, K - 2 * R), torch.ones(2 * R))),
    "more ties than a block holds": torch.cat((torch.linspace(9, 2, K - 60), torch.ones(60))),
    "a cluster": torch.cat((torch.linspace(9, 2, K - 60), torch.linspace(1 + 1e-6, 1, 60))),
    "a narrow gap at the cut": torch.cat((torch.linspace(9, 1.002, K - R), torch.linspace(1, 0.99, R))),
    "zeros": torch.cat((torch.linspace(9, 2, K - 3), torch.zeros(3))),
    "more zeros than the tail": torch.cat((torch.linspace(9, 2, K - 30), torch.zeros(30))),
    "rank one": torch.cat((torch.ones(1), torch.zeros(K - 1))),
    "nothing": torch.zeros(K),
    "large numbers": 1e30 * torch.linspace(9, 1, K, dtype=torch.float64),
    "small numbers": 1e-30 * torch.linspace(9, 1, K, dtype=torch.float64),
}
spectra = pytest.mark.parametrize("spectrum", SPECTRA)
shapes = pytest.mark.parametrize("shape", [(K, K), (K, 2 * K), (K + 40, K)], ids=["square", "wide", "tall"])


@pytest.fixture
def large_path(monkeypatch):
    """Send matrices of the tests' size through the methods for large ones."""
    monkeypatch.setattr(smallest, "direct_limit", lambda square, r: 0)


def check(W, tail):
    full = check_tail(W, R, tail)
    if relative_gap(full, R) > 1e-3 and full[-R] > 1e-9 * full[0]:
        check_component(W, R, tail)


methods = pytest.mark.parametrize(
    "method", [direct_triplets, triplets_by_eigh, triplets_by_gram, triplets_by_lu, triplets_by_lq]
)


def in_float32(triplets):
    U, S, V = (t.float() for t in triplets)
    return TailSVD(U, S, V.mT)


@shapes
@spectra
def test_small_weights_of_every_spectrum(spectrum, shape):
    W = with_spectrum(*shape, SPECTRA[spectrum]).float()
    check(W, tail_svd(W, R))


@shapes
@spectra
def test_large_weights_of_every_spectrum(spectrum, shape, large_path):
    W = with_spectrum(*shape, SPECTRA[spectrum]).float()
    check(W, tail_svd(W, R))


@shapes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("spectrum", ["power law", "condition 1e4", "zeros", "a few tiny values"])
def test_large_weights_in_sixteen_bits(spectrum, shape, dtype, large_path):
    W = with_spectrum(*shape, SPECTRA[spectrum]).to(dtype)
    check(W, tail_svd(W, R))


@st.composite
def hard_spectra(draw):
    """Values over twelve decades in groups of equal ones, zeros among them."""
    groups = draw(
        st.lists(st.tuples(st.just(0.0) | st.floats(-12, 0).map(lambda e: 10.0**e), st.integers(1, 30)), min_size=1)
    )
    values = torch.tensor([value for value, count in groups for _ in range(count)], dtype=torch.float64)
    return torch.cat((values, torch.ones(72)))[:72].sort(descending=True).values


@given(S=hard_spectra(), r=st.integers(1, 6), wider=st.integers(0, 40), large=st.booleans(), seed=st.integers(0, 99))
def test_any_spectrum(S, r, wider, large, seed):
    W = with_spectrum(72, 72 + wider, S, seed).float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smallest, "direct_limit", lambda square, r: 0 if large else 1000)
        tail = tail_svd(W, r)
    full = check_tail(W, r, tail)
    if relative_gap(full, r) > 1e-3 and full[-r] > 1e-9 * full[0]:
        check_component(W, r, tail)


@shapes
def test_dead_rows_and_columns(shape, large_path):
    W = with_spectrum(*shape, SPECTRA["power law"]).float()
    W[3] = W[7] = 0
    W[:, 5] = 0
    check(W, tail_svd(W, R))


@methods
@pytest.mark.parametrize("spectrum", ["power law", "a narrow gap at the cut", "all equal", "a tie across the cut"])
def test_every_method_does_what_it_is_for(method, spectrum, large_path):
    W = with_spectrum(K, K if method is triplets_by_lu else 2 * K, SPECTRA[spectrum])
    check(W, in_float32(method(W, R)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_gram_method_takes_a_narrow_weight_some_columns_at_a_time(dtype, monkeypatch):
    W = with_spectrum(K, 2 * K, SPECTRA["power law"]).to(dtype)
    wanted = triplets_by_gram(W.double(), R)
    monkeypatch.setattr(triplets, "PANEL", K // 3)
    monkeypatch.setattr(torch.Tensor, "double", narrow_only(torch.Tensor.double, K // 3))
    found = triplets_by_gram(W, R)
    torch.testing.assert_close(found.S, wanted.S)
    torch.testing.assert_close((found.U * found.S) @ found.V.mT, (wanted.U * wanted.S) @ wanted.V.mT)


def narrow_only(double, columns):
    def checked(t):
        assert t.shape[1] <= columns, "more of the weight than a panel was widened"
        return double(t)

    return checked


@pytest.mark.parametrize("method", [triplets_by_lu, triplets_by_lq])
def test_lu_and_lq_bear_condition_1e12(method):
    W = with_spectrum(K, K if method is triplets_by_lu else 2 * K, SPECTRA["condition 1e12"])
    found = method(W, R)
    torch.testing.assert_close(found.S, full_triplets(W, R).S, rtol=1e-2, atol=0)
    check_tail(W, R, in_float32(found))


@methods
@pytest.mark.parametrize("spectrum", ["zeros", "nothing", "rank one"])
def test_a_method_never_hands_over_what_is_wrong(method, spectrum):
    W = with_spectrum(K, K if method is triplets_by_lu else 2 * K, SPECTRA[spectrum])
    found = method(W, R)
    if found is not None:
        check_tail(W, R, in_float32(found))


@pytest.mark.parametrize("scale", [1.0, float("nan")])
@pytest.mark.parametrize("n", [K, 2 * K])
def test_a_wrong_result_is_refused_and_the_full_svd_logged(n, scale, monkeypatch, large_path, caplog):
    """Vectors that are orthonormal but not the tail's pass no check."""
    wrong = scale * torch.linalg.qr(torch.randn(K, R + 8, dtype=torch.float64)).Q
    monkeypatch.setattr(smallest, "smallest_left_space", lambda *_: wrong)
    W = with_spectrum(K, n, SPECTRA["power law"]).float()
    with caplog.at_level(logging.INFO, logger="kasatune"):
        check(W, tail_svd(W, R, name="encoder.q"))
    assert "encoder.q" in caplog.text
    assert "full SVD" in caplog.text


@shapes
@pytest.mark.parametrize("limit", [0, 1024], ids=["large", "small"])
@pytest.mark.parametrize("spectrum", sorted(set(SPECTRA) - {"nothing", "a few tiny values"}))
def test_few_spectra_need_the_full_svd(spectrum, shape, limit, monkeypatch):
    monkeypatch.setattr(smallest, "direct_limit", lambda square, r: limit)
    monkeypatch.setattr(smallest, "full_triplets", lambda W, r: pytest.fail("the full SVD was taken"))
    tail_svd(with_spectrum(*shape, SPECTRA[spectrum]).float(), R)


@pytest.mark.parametrize("shape", [(96, 96), (K, K), (K, 2 * K)])
def test_the_same_weight_gives_the_same_bytes(shape, large_path):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    first = tail_svd(W, R)
    torch.manual_seed(12345)
    for one, other in zip(first, tail_svd(W.clone(), R), strict=True):
        assert torch.equal(one, other)


def test_the_global_generator_is_left_alone(large_path):
    state = torch.get_rng_state()
    tail_svd(torch.ones(K, K).tril(), R)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("r", [1, 2, 40, K // 2, K - 1])
@shapes
def test_ranks_from_one_to_the_last(r, shape, large_path):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    tail = tail_svd(W, r)
    if relative_gap(check_tail(W, r, tail), r) > 1e-3:
        check_component(W, r, tail)


def test_methods_by_shape_and_rank():
    assert smallest._methods((256, 256), 8) == [direct_triplets, triplets_by_lu]
    assert smallest._methods((1024, 1024), 8) == [triplets_by_lu]
    assert smallest._methods((768, 3072), 8) == [direct_triplets, triplets_by_lq]
    assert smallest._methods((4096, 4096), 32) == [triplets_by_lu]
    assert smallest._methods((4096, 11008), 32) == [triplets_by_gram, triplets_by_lq]
    assert smallest._methods((4096, 4096), 1024) == [direct_triplets]

"""Hypothesis strategies for factors, and matrices of a chosen spectrum."""

import torch
from hypothesis import strategies as st

from kasatune.kasa.functional import Factors


def random_factors(out_features, in_features, r, core, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    sigma_shape = (r,) if core == "diagonal" else (r, r)
    return Factors(
        *(
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for shape in ((r, in_features), sigma_shape, (out_features, r))
        )
    )


@st.composite
def factor_lists(draw, dtype=torch.float32, max_layers=5):
    """One to five layers whose shapes repeat, so that some are grouped and some are not."""
    shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.sampled_from(["diagonal", "dense"]))
    pool = draw(st.lists(shapes, min_size=1, max_size=2))
    chosen = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=max_layers))
    seed = draw(st.integers(0, 2**31))
    return [random_factors(*shape, seed + index, dtype) for index, shape in enumerate(chosen)]


def with_spectrum(out_features, in_features, S, seed=0):
    """A float64 matrix with singular values S (k,), between random orthonormal bases."""
    generator = torch.Generator().manual_seed(seed)
    k = len(S)
    U, _ = torch.linalg.qr(torch.randn(out_features, k, generator=generator, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(in_features, k, generator=generator, dtype=torch.float64))
    return (U * torch.as_tensor(S, dtype=torch.float64)) @ V.mT

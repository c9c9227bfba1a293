import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kasatune.errors import InputError
from kasatune.kasa import oracle
from kasatune.kasa.convention import dropped_count


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
def test_known_shapes(out_features, in_features, r, paper, authors):
    assert dropped_count(out_features, in_features, r, "paper") == paper
    assert dropped_count(out_features, in_features, r, "authors") == authors


@pytest.mark.parametrize("convention", ["paper", "authors"])
@given(out_features=st.integers(2, 30), in_features=st.integers(2, 30), data=st.data())
def test_dropped_and_kept_make_up_the_whole(convention, out_features, in_features, data):
    k = min(out_features, in_features)
    r = data.draw(st.integers(1, k - 1))
    kept = oracle.kept_count(torch.empty(out_features, in_features), r, convention)
    assert dropped_count(out_features, in_features, r, convention) == k - kept


def test_an_unknown_convention_is_refused():
    with pytest.raises(InputError, match=r"'ours'.*'paper' or 'authors'"):
        dropped_count(4, 4, 1, "ours")

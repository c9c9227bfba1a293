"""The paired t-test against scipy, and Holm's correction against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from kasatune.metrics.hypothesis_tests import holm, paired_t


@pytest.mark.parametrize("seed", range(20))
def test_the_paired_t_test_is_scipys(seed):
    draw = np.random.default_rng(seed)
    a, b = draw.normal(0.8, 0.02, size=(2, 2 + seed % 7))
    assert paired_t(list(a - b)) == pytest.approx(ttest_rel(a, b).pvalue, rel=1e-9)


@pytest.mark.parametrize(("differences", "p"), [([0.1], None), ([], None), ([0.0, 0.0], 1.0), ([0.1, 0.1], None)])
def test_p_is_none_where_the_test_is_undefined(differences, p):
    assert paired_t(differences) == p


def rejected_by_holm(p_values: list[float], level: float) -> set[int]:
    """Holm's procedure: compare the i-th smallest of m with level / (m - i + 1), stop at the first above it."""
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        if p_values[index] > level / (len(p_values) - rank):
            break
        rejected.add(index)
    return rejected


@pytest.mark.parametrize("seed", range(50))
def test_adjusted_p_values_reject_what_holms_procedure_rejects(seed):
    draw = np.random.default_rng(seed)
    p_values = list(draw.random(1 + seed % 9) ** 3)
    adjusted = holm(p_values)
    for level in (*draw.random(20), 0.05):
        assert {index for index, p in enumerate(adjusted) if p <= level} == rejected_by_holm(p_values, level)


def test_holm_on_an_example_by_hand():
    # 4 x 0.01, 3 x 0.02, 2 x 0.03 (at least the 0.06 before it), 1 x 0.04 (likewise)
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasatune.reports.chart_axis import Scale
from kasatune.reports.formatting import compact, duration, score, share, size
from kasatune.reports.svg_charts import Chart, Line, thin

finite = st.floats(-1e12, 1e12, allow_nan=False)


@given(st.lists(finite, min_size=1, max_size=20), st.booleans())
def test_all_values_that_can_be_shown_are_within_the_axis(values, log):
    scale = Scale(values, 50, 300, log=log, margin=0.05)
    for value in values:
        pixel = scale(value)
        if log and value <= 0:
            assert pixel is None
        else:
            assert pixel is not None and 50 - 1e-6 <= pixel <= 300 + 1e-6


@given(st.lists(finite, min_size=2, max_size=5, unique=True))
def test_ticks_lie_within_the_axis_and_are_few(values):
    scale = Scale(values, 0, 100, log=False)
    ticks = scale.ticks(4)
    assert len(ticks) <= 6
    assert all(-1e-3 <= (scale(tick) or 0) <= 100 + 1e-3 for tick in ticks)


def test_ticks_of_a_wide_logarithmic_axis_are_powers_of_ten():
    assert Scale([1e-4, 5e3], 0, 100, log=True).ticks(4) == [1e-3, 1e-1, 1e1, 1e3]


@pytest.mark.parametrize("length", [1, 299, 300, 301, 12_345])
def test_thinning_keeps_the_mean_and_the_limit(length):
    x, y = thin(range(length), [float(i % 7) for i in range(length)])
    assert len(x) == len(y) <= 300
    if length <= 300:
        assert list(x) == list(range(length))
    else:
        assert sum(y) / len(y) == pytest.approx(3, abs=0.1)


def test_a_reversed_axis_has_the_largest_position_at_the_left():
    lines = [Line("", [1, 10, 100], [3.0, 2.0, 1.0])]
    chart = Chart("t", "d", lines, "x", log_x=True, reverse_x=True)
    across = [float(x) for x in re.findall(r"[ML]([\d.]+) ", re.search(r'<path class="s1" d="([^"]+)"', chart.svg)[1])]
    assert across == sorted(across, reverse=True)


def test_a_single_point_is_a_dot():
    assert "<circle" in Chart("t", "d", [Line("a", [1], [2.0])], "x").svg


def test_equal_and_missing_values_do_not_break_the_axes():
    for values in ([5.0, 5.0], [0.0, 0.0], [math.nan, math.nan]):
        assert "nan" not in Chart("t", "d", [Line("a", [1, 2], values)], "x").svg.lower()


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (compact(12_000), "12k"),
        (compact(0.0001), "1e-4"),
        (compact(2_442_500), "2.4425e6"),  # ticks of a narrow range differ
        (compact(0.05), "0.05"),
        (score(None), "-"),
        (score(math.nan), "NaN"),
        (score(2 / 3), "0.6667"),
        (duration(0.042), "42 ms"),
        (duration(119.99), "120.0 s"),
        (duration(3599.9), "1 h 0 min"),
        (duration(195), "3 min 15 s"),
        (size(1023), "1023 bytes"),
        (size(5 * 2**30), "5.00 GiB"),
        (share(0.1234), "12 %"),
        (share(1e-9), "under 0.01 %"),
    ],
)
def test_numbers_are_formatted_for_people(written, expected):
    assert written == expected

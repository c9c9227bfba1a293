"""The rule of the verdicts, one case for each of its clauses."""

from __future__ import annotations

import pytest

from kasatune.experiments.reproduce.published.schema import Figure, Log
from kasatune.experiments.reproduce.verdict import RULE, judge

PRINTED = (86.25, 86.35)  # what is printed as 86.3


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((85.0, 87.0), "reproduced"),
        ((86.34, 88.0), "reproduced"),
        ((80.0, 86.26), "reproduced"),
        ((86.36, 88.0), "higher"),
        ((80.0, 86.24), "lower"),
    ],
)
def test_the_interval_decides(interval, word):
    assert judge(86.0, interval, PRINTED, ()).word == word


def test_a_difference_of_settings_forbids_a_comparison_however_near_the_numbers_are():
    verdict = judge(86.3, (86.0, 86.6), PRINTED, ["training.epochs: 3 (published: 100)"])
    assert verdict.word == "not comparable"
    assert verdict.reasons == ("training.epochs: 3 (published: 100)",)


def test_what_cannot_be_judged_has_a_word_of_its_own():
    assert judge(None, None, PRINTED, (), "no data") == ("not run", ("no data",))
    assert judge(86.3, (86.0, 86.6), None, ()).word == "nothing published"
    assert judge(86.3, None, PRINTED, ()).word == "undecided"


def test_every_word_is_explained():
    for word in ("reproduced", "lower", "higher", "undecided", "not comparable", "nothing published", "not run"):
        assert word in RULE


def test_the_papers_number_counts_before_the_log():
    both = Figure("a", "accuracy", "kasa", 86.3, "", log=Log(86.29))
    assert both.target == pytest.approx(PRINTED)
    log = Figure("a", "accuracy", "kasa", None, "", log=Log(65.82))
    assert log.target == pytest.approx((65.815, 65.825))
    assert Figure("a", "accuracy", "kasa", (2.05, 3.25), "").target == (2.05, 3.25)
    assert Figure("a", "accuracy", "kasa", None, "").target is None

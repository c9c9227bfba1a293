"""What can be said of our number beside a published one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

RULE = (
    "reproduced: the 95 % interval of our score holds a value that rounds to the published number (the paper's where "
    "it is known, else the authors' log's); lower, higher: the whole interval lies below or above it; undecided: there "
    "is no interval, because a corpus score of a single seed has none here; not comparable: a setting that decides "
    "the score differs from the published one, or the published one is not known; nothing published: no number was "
    "found; not run: we have no score. The interval covers the scored rows and the seeds; how far the published number "
    "itself would move with another seed is not known."
)


class Verdict(NamedTuple):
    """A word of `RULE`, and the reasons where there are any."""

    word: str
    reasons: tuple[str, ...] = ()


def judge(
    score: float | None,
    interval: tuple[float, float] | None,
    target: tuple[float, float] | None,
    differences: Sequence[str],
    missing: str = "",
) -> Verdict:
    """The verdict on one number, by `RULE`.

    Args:
        score: ours; None where there is none.
        interval: its 95 % interval; None where there is none.
        target: smallest and largest value that agree with what was published; None where nothing was.
        differences: what else than in the published run was done, and what of it is unknown.
        missing: why there is no score.
    """
    if score is None:
        return Verdict("not run", (missing,) if missing else ())
    if target is None:
        return Verdict("nothing published")
    if differences:
        return Verdict("not comparable", tuple(differences))
    if interval is None:
        return Verdict("undecided", ("no interval of a corpus score of one seed",))
    if interval[1] < target[0]:
        return Verdict("lower")
    if interval[0] > target[1]:
        return Verdict("higher")
    return Verdict("reproduced")

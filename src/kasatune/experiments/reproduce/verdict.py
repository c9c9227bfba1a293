"""The verdict on our score of a published number: reproduced, lower, higher, or why neither can be said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

RULE = (
    "reproduced: the 95 % interval of our score contains a value that rounds to the published number (the paper's if "
    "it is known, else the authors' log's); lower, higher: the entire interval lies below or above it; undecided: "
    "there is no interval, because none is computed for a corpus score of a single seed; not comparable: a setting "
    "that affects the score differs from the published one, or the published one is not known; nothing published: no "
    "number was found; not run: we have no score. The interval covers the scored rows and the seeds; how much the "
    "published number itself would vary with the seed is not known."
)


class Verdict(NamedTuple):
    """A term of `RULE`, and the reasons, if any."""

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
        score: ours; None without one.
        interval: its 95 % interval; None without one.
        target: smallest and largest value that agree with the published number; None if nothing was published.
        differences: how our runs differ from the published one, and what is unknown of that one.
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

"""Bootstrap intervals of a run's main score and of its difference to the fitted head."""

from __future__ import annotations

from kasatune.metrics.bootstrap import Interval, bootstrap_interval, paired_bootstrap
from kasatune.reports.run_record import RunRecord


def accuracy_interval(run: RunRecord) -> Interval | None:
    """The accuracy with its 95 % bootstrap interval over the rows; None if accuracy is not the main score."""
    correct = run.correct
    return bootstrap_interval(correct) if correct and run.primary == "accuracy" else None


def against_baseline(run: RunRecord) -> Interval | None:
    """Main score minus that of the fitted head on the same rows; None without a fitted head.

    For accuracy, the interval is the 95 % paired bootstrap over the rows; for other scores, low and high equal the
    difference.
    """
    base = run.baseline
    if base is None or run.primary is None or base.scores.get(run.primary) is None:
        return None
    mine, theirs = run.correct, base.correct
    if run.primary == "accuracy" and mine and theirs and run.predictions["labels"] == base.predictions["labels"]:
        return paired_bootstrap(mine, theirs)
    difference = run.scores[run.primary] - base.scores[run.primary]
    return Interval(difference, difference, difference)

"""Which of two evaluations is better: the rule by which the best state of a run is selected."""

from __future__ import annotations

import math

LOWER_IS_BETTER = ("loss", "mse", "perplexity")
"""Scores whose smaller value is the better one."""


def is_better(metrics: dict[str, float], best: dict[str, float] | None, primary: str) -> bool:
    """Whether `metrics` are better than `best`: by the score `primary`, and by the lower loss where it is equal.

    NaN is worse than any number. Metrics that are equal in both are not better, so that the earlier ones are kept.
    """
    return best is None or _badness(metrics, primary) < _badness(best, primary)


def _badness(metrics: dict[str, float], primary: str) -> tuple[bool, float, bool, float]:
    """A key that sorts evaluations, the best first."""
    value, loss = metrics.get(primary, math.nan), metrics.get("loss", math.nan)
    signed = value if primary in LOWER_IS_BETTER else -value
    return math.isnan(value), 0.0 if math.isnan(value) else signed, math.isnan(loss), 0.0 if math.isnan(loss) else loss

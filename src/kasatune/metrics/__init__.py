"""Scores of predictions against references, and the statistics that compare them."""

from __future__ import annotations

from kasatune.metrics.bootstrap import Interval, bootstrap_interval, paired_bootstrap
from kasatune.metrics.classification_regression import (
    UndefinedScoreWarning,
    classification_scores,
    regression_scores,
)

__all__ = [
    "Interval",
    "UndefinedScoreWarning",
    "bootstrap_interval",
    "classification_scores",
    "paired_bootstrap",
    "regression_scores",
]

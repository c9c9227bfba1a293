"""Predictions and references in, scores out."""

from __future__ import annotations

from kasatune.metrics.intervals import Interval, bootstrap_interval, paired_bootstrap
from kasatune.metrics.scores import UndefinedScoreWarning, classification_scores, regression_scores

__all__ = [
    "Interval",
    "UndefinedScoreWarning",
    "bootstrap_interval",
    "classification_scores",
    "paired_bootstrap",
    "regression_scores",
]

"""Verdicts on a difference (better, worse, equivalent, not inferior, undecided), and the margins they are made with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from kasatune.errors import InputError
from kasatune.experiments.compare.forgetting import FORGETTING
from kasatune.metrics.hypothesis_tests import holm
from kasatune.metrics.seeds_by_rows import MeanOfTable
from kasatune.reports.formatting import score_name
from kasatune.training.better_score import LOWER_IS_BETTER

LEVEL = 0.05
BETTER, WORSE, EQUIVALENT, NOT_INFERIOR = "better", "worse", "equivalent", "not inferior"
UNDECIDED, NOT_TESTED = "undecided", "not tested"
MATCHED = f"{FORGETTING}_matched"
"""Forgetting of a method at the main score that both methods of a pair reached."""

DEFAULT_MARGINS: Mapping[str, float] = MappingProxyType(
    {
        "accuracy": 0.01,
        "acc": 0.01,
        "acc_norm": 0.01,
        "f1": 0.01,
        "exact_match": 0.01,
        "matthews_correlation": 0.02,
        "pearson": 0.01,
        "spearman": 0.01,
        "loss": 0.02,
        "rouge_l": 0.01,
        "sentence_bleu": 0.01,
        "bleu": 0.01,
        FORGETTING: 0.02,
        MATCHED: 0.02,
    }
)
"""The largest difference that does not matter, by score; `--margin METRIC=VALUE` sets another."""


def lower_is_better(metric: str) -> bool:
    """Whether smaller values of a score are better."""
    return score_name(metric) in (*LOWER_IS_BETTER, FORGETTING, MATCHED)


def parse_margins(texts: Sequence[str]) -> dict[str, float]:
    """Parse the values of `--margin`, such as "accuracy=0.005".

    Raises:
        InputError: a value is not METRIC=VALUE with a positive number, or a metric is given twice.
    """
    margins: dict[str, float] = {}
    for text in texts:
        metric, _, value = text.partition("=")
        margin = parse_margin(value)
        if not metric or margin is None:
            raise InputError(
                f"--margin: {text!r} received; give METRIC=VALUE with a number above 0, for example accuracy=0.01"
            )
        if metric in margins:
            raise InputError(f"--margin: {metric} is given twice; keep one")
        margins[metric] = margin
    return margins


def parse_margin(text: str) -> float | None:
    """A margin as a positive, finite number; None if `text` is not one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def as_difference(mean: MeanOfTable | None, metric: str, margin: float | None, seeds: int) -> dict[str, Any]:
    """The tests of a difference, method minus reference, without corrections and verdict: see `Difference`."""
    empty = dict.fromkeys(("mean", "interval", "p", "p_holm", "p_equivalent", "p_not_inferior", "standard_error", "df"))
    base = {"seeds": seeds, "margin": margin, "verdict": NOT_TESTED, "verdicts": [NOT_TESTED], "family": None, **empty}
    base |= {"rows": None, "variances": None, "interval_90": None}
    if mean is None:
        return base
    good = -mean if lower_is_better(metric) else mean
    certain = mean.standard_error > 0 or mean.estimate == 0
    return base | {
        "mean": mean.estimate,
        "interval": list(mean.interval()) if certain else None,
        "interval_90": list(mean.interval(0.9)) if certain else None,
        "p": mean.p_differs(),
        "p_equivalent": None if margin is None else mean.p_equivalent(margin),
        "p_not_inferior": None if margin is None else good.p_above(-margin),
        "standard_error": mean.standard_error,
        "df": mean.df,
        "rows": mean.rows,
        "variances": {"seeds": mean.seed_variance, "rows": mean.row_variance, "residual": mean.residual_variance},
    }


def decide(primary: Sequence[tuple[str, dict[str, Any]]], exploratory: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Add families, corrected p and verdicts to differences, given as (metric, result of `as_difference`).

    A primary difference is tested alone at 5 %. The exploratory ones are corrected by Holm's method, the tests of one
    kind (difference, equivalence, non-inferiority) together.
    """
    for _, difference in primary:
        difference["family"] = "primary"
        for key in ("p", "p_equivalent", "p_not_inferior"):
            difference[_corrected(key)] = difference[key]
    for key in ("p", "p_equivalent", "p_not_inferior"):
        tested = [difference for _, difference in exploratory if difference[key] is not None]
        for difference, p in zip(tested, holm([difference[key] for difference in tested]), strict=True):
            difference[_corrected(key)] = p
    for metric, difference in (*primary, *exploratory):
        difference["family"] = difference["family"] or "exploratory"
        difference["verdicts"] = _verdicts(metric, difference)
        difference["verdict"] = difference["verdicts"][0]


def _corrected(key: str) -> str:
    return f"{key}_holm"


def _verdicts(metric: str, difference: Mapping[str, Any]) -> list[str]:
    """Everything that is shown, the strongest first; better or worse may also be equivalent or not inferior."""
    mean = difference["mean"]
    if mean is None or difference["p"] is None:
        return [NOT_TESTED]
    shown = []
    if _below(difference, "p"):
        shown.append(BETTER if (mean < 0) == lower_is_better(metric) else WORSE)
    if _below(difference, "p_equivalent"):
        shown.append(EQUIVALENT)
    elif BETTER not in shown and _below(difference, "p_not_inferior"):
        shown.append(NOT_INFERIOR)
    return shown or [UNDECIDED]


def _below(difference: Mapping[str, Any], key: str) -> bool:
    p = difference.get(_corrected(key))
    return p is not None and p < LEVEL

"""Format numbers and metric names for tables, reports and model cards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_TITLES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews_correlation": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "mse": "mean squared error",
    "bleu": "BLEU",
    "nist": "NIST",
    "meteor": "METEOR",
    "meteor_exact_stem": "METEOR (exact and stem)",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "exact_match": "exact match",
    "retrieval_recall": "recall of retrieval",
    "unparsed": "outputs without an answer",
    "acc": "acc (log-likelihood)",
    "acc_norm": "acc_norm (log-likelihood)",
    "judge": "judge, 0 to 10",
    "mt_bench": "MT-Bench, 1 to 10",
    "margin": "margin of the rewards",
    "loss": "loss",
    "perplexity": "perplexity",
    "sentence_bleu": "sentence BLEU",
    "forgetting": "forgetting",
    "forgetting_matched": "forgetting at matched score",
}

_SHARES = (
    *("accuracy", "f1", "exact_match", "retrieval_recall", "unparsed"),
    *("bleu", "sentence_bleu", "meteor", "meteor_exact_stem", "rouge_l"),
)
_RANGES = {
    **dict.fromkeys(_SHARES, (0.0, 1.0)),
    **dict.fromkeys(("acc", "acc_norm"), (0.0, 1.0)),
    **dict.fromkeys(("matthews_correlation", "pearson", "spearman"), (-1.0, 1.0)),
}

ABSENT = "-"
RELOAD_SECONDS = 15
"""How often the page of a run or comparison in progress reloads itself."""


def metric_title(name: str, run: Mapping[str, Any] | None = None) -> str:
    """The title of a score, "PART: TITLE" for one of a mixture's parts; its name if it is unknown.

    Args:
        name: name of the score.
        run: content of metrics.json of the run that has the score, whose number of labels decides what F1 means: that
            of the second label for two labels, the mean over all labels for more.
    """
    part, slash, score_of_part = name.rpartition("/")
    if slash:
        return f"{part}: {metric_title(score_of_part, run)}"
    labels = (run or {}).get("label_names") or ()
    if name == "f1" and len(labels) > 2:
        return "macro F1"
    if name == "f1" and len(labels) == 2:
        return f"F1 of {labels[1]}"
    return _TITLES.get(name, name.replace("_", " "))


def metric_range(name: str) -> tuple[float, float] | None:
    """The smallest and largest possible value of a score; None if it is unbounded or unknown."""
    return _RANGES.get(score_name(name))


def score_name(name: str) -> str:
    """The name of a score without the part of a mixture that it is of: "bleu" for "e2e/bleu"."""
    return name.rpartition("/")[2]


def sentence(text: str) -> str:
    """`text` with its first letter in upper case and the rest unchanged."""
    return text[:1].upper() + text[1:]


def score(value: float | None) -> str:
    """A score with four decimals; "-" for None and "NaN" for NaN."""
    if value is None:
        return ABSENT
    number = float(value)
    if math.isnan(number):
        return "NaN"
    return f"{number:.4f}" if abs(number) < 1000 else f"{number:.4g}"


def signed(value: float) -> str:
    """A difference of scores with its sign and four decimals; values that round to zero are +0.0000."""
    return f"{round(value, 4) + 0.0:+.4f}"


def count(value: float | None) -> str:
    """An integer with thousands separated by commas."""
    return ABSENT if value is None else f"{int(value):,}"


def compact(value: float) -> str:
    """A short form of a number for axes, six significant digits at most: 12,000 is 12k, 0.0001 is 1e-4."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        mantissa, exponent = f"{value:.5e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if size >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{value:.6g}"


def duration(seconds: float | None) -> str:
    """Seconds as a duration in at most two units."""
    if seconds is None:
        return ABSENT
    value = float(seconds)
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def size(value: float | None) -> str:
    """Bytes in binary units, up to GiB."""
    if value is None:
        return ABSENT
    number = float(value)
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.2f} GiB"


def share(value: float) -> str:
    """A fraction as a percentage with two significant digits."""
    percent = 100 * value
    if 0 < percent < 0.01:
        return "under 0.01 %"
    return f"{percent:.2g} %" if percent < 99.5 else f"{percent:.0f} %"

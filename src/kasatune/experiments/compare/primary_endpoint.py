"""The primary endpoint of a comparison: the one difference that is tested alone, without correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kasatune.data.tasks.table import TASKS
from kasatune.errors import InputError
from kasatune.experiments.compare.endpoint_rows import endpoint_names
from kasatune.experiments.compare.verdict import DEFAULT_MARGINS, MATCHED, parse_margin
from kasatune.methods.table import canonical_name
from kasatune.reports.formatting import score_name

_FORM = "task:metric:method:reference, optionally with :margin"


@dataclass(frozen=True)
class PrimaryEndpoint:
    """One difference, chosen before the runs.

    Attributes:
        task: name of the task in the comparison.
        metric: the score.
        method: text of the variant that is tested.
        reference: text of the variant that it is compared with.
        margin: the margin of equivalence and non-inferiority; None if the score has none.
    """

    task: str
    metric: str
    method: str
    reference: str
    margin: float | None


def parse_primary(
    text: str,
    tasks: Mapping[str, tuple[str, str, Mapping[str, str]]],
    variants: Sequence[str],
    margins: Mapping[str, float],
) -> PrimaryEndpoint:
    """Parse the value of `--primary`; variants may contain colons themselves, as kasa:convention=authors does.

    Args:
        text: the value.
        tasks: for the name of each task of the comparison, the task in recipes, its main score, and the task of each
            part of a mixture.
        variants: texts of the variants that are trained.
        margins: margins of `--margin`.

    Raises:
        InputError: it has another form, or names something that is not part of the comparison.
    """
    task = next((name for name in tasks if text.startswith(f"{name}:")), None)
    if task is None:
        raise InputError(f"--primary: {text!r} received; write {_FORM}; the tasks are {', '.join(tasks)}")
    metric, _, rest = text.removeprefix(f"{task}:").partition(":")
    known = analysed_metrics(*tasks[task])
    if metric not in known:
        raise InputError(f"--primary: {metric!r} is not a score of {task}; choose from {', '.join(known)}")
    for method in sorted(variants, key=len, reverse=True):
        for reference in sorted(variants, key=len, reverse=True):
            pair = _after(rest, method, reference)
            if pair is None or method == reference:
                continue
            margin = parse_margin(pair) if pair else margins.get(metric, DEFAULT_MARGINS.get(score_name(metric)))
            if pair and margin is None:
                raise InputError(f"--primary: the margin {pair!r} received; give a number above 0")
            return PrimaryEndpoint(task, metric, method, reference, margin)
    raise InputError(
        f"--primary: {rest!r} received; write {_FORM}, with two different methods of {', '.join(variants)}"
    )


def analysed_metrics(task: str, primary: str, parts: Mapping[str, str]) -> list[str]:
    """The scores of a task that can be a primary endpoint; for the arguments see `endpoint_names`."""
    of_parts = [f"{part}/{metric}" for part, own in parts.items() for metric in TASKS[own].metrics]
    names = [*endpoint_names(task, primary, parts), MATCHED, *TASKS[task].metrics, "loss", *of_parts]
    return list(dict.fromkeys(names))


def as_record(primary: PrimaryEndpoint) -> dict[str, Any]:
    """The endpoint as plain data."""
    return {
        "task": primary.task,
        "metric": primary.metric,
        "method": primary.method,
        "reference": primary.reference,
        "margin": primary.margin,
    }


def _after(text: str, method: str, reference: str) -> str | None:
    """What follows "method:reference" in `text`, without its colon; None if `text` does not start with it."""
    start = f"{method}:{reference}"
    canonical = ":".join(canonical_name(part) if "=" not in part else part for part in text.split(":"))
    for written in (text, canonical):
        if written == start:
            return ""
        if written.startswith(f"{start}:"):
            return written.removeprefix(f"{start}:")
    return None

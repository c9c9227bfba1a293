"""Training curves of a run: loss, scores and penalty terms over steps and epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kasatune import wording
from kasatune.reports import formatting
from kasatune.reports.run_record import RunRecord
from kasatune.reports.svg_charts import Chart, Line, thin

_UNBOUNDED = ("loss", "perplexity", "mse", "nist", "cider")  # not in [-1, 1], so they need a different axis
MANY_DOTS = 30  # up to this many evaluations each point is marked


def _numbers(events: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [math.nan if event.get(key) is None else float(event[key]) for event in events]


def loss_chart(run: RunRecord) -> Chart | None:
    """The task loss over the optimizer steps, in training and in evaluations; None without training steps."""
    events = run.events("train")
    if not events:
        return None
    steps, losses = _numbers(events, "step"), _numbers(events, "loss")
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return None
    x, y = thin(steps, losses)
    lines = [Line("training", x, y, "s1")]
    for place, (split, group) in enumerate(_evaluations(run).items()):
        points = [(float(e["step"]), e["metrics"].get("loss")) for e in group]
        points = [(step, float(loss)) for step, loss in points if loss is not None]
        if points:
            at, values = zip(*points, strict=True)
            lines.append(Line(split, at, values, f"s{min(place, 2) + 2}", dots=len(at) <= MANY_DOTS))
    averaged = (
        f"Each point of the training line is the mean of {wording.counted(math.ceil(len(steps) / len(x)), 'value')}. "
    )
    return Chart(
        title="Task loss",
        description=f"Training: {finite[0]:.4g} at the start, {finite[-1]:.4g} at the end, lowest {min(finite):.4g}.",
        lines=lines,
        x_label="optimizer step",
        whole_x=True,
        y_bounds=(0.0, math.inf),
        note=(averaged if len(x) < len(steps) else "") + "Without the penalty terms.",
    )


def _evaluations(run: RunRecord) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for event in run.events("evaluate"):
        groups.setdefault(str(event.get("split", "validation")), []).append(event)
    return groups


def score_chart(run: RunRecord) -> Chart | None:
    """The scores with values in [-1, 1] over the epochs, on the reported split; None without such scores."""
    groups = _evaluations(run)
    if not groups:
        return None
    reported = str(run.metrics.get("split"))
    split = reported if reported in groups else next(iter(groups))
    events = groups[split]
    names = [
        name
        for name in run.score_names
        if name in events[0]["metrics"] and formatting.score_name(name) not in _UNBOUNDED
    ]
    if not names:
        return None
    lines = [
        Line(
            formatting.metric_title(name, run.metrics),
            [float(e["epoch"]) for e in events],
            _numbers([event["metrics"] for event in events], name),
            f"s{place + 1}",
            dots=len(events) <= MANY_DOTS,
        )
        for place, name in enumerate(names[:4])
    ]
    first = lines[0]
    ranges = [formatting.metric_range(name) for name in names[:4]]
    known = [bounds for bounds in ranges if bounds is not None]
    return Chart(
        y_bounds=(min(low for low, _ in known), max(high for _, high in known)) if len(known) == len(ranges) else None,
        title=f"Scores on {split}",
        description=f"{formatting.sentence(first.label)}: {first.y[0]:.4f} at epoch {wording.epoch(first.x[0])}, "
        f"{first.y[-1]:.4f} at epoch {wording.epoch(first.x[-1])}.",
        lines=lines,
        x_label="epoch",
        whole_x=True,
    )


def rate_chart(run: RunRecord) -> Chart | None:
    """The learning rate over the optimizer steps; None if no step records it."""
    return _step_chart(run, "learning_rate", "Learning rate", "s3")


def gradient_chart(run: RunRecord) -> Chart | None:
    """The norm of the gradient of the task loss, before clipping, over the steps; None if no step records it."""
    chart = _step_chart(run, "grad_norm", "Gradient norm", "s4")
    limit = run.recipe.get("training", {}).get("max_grad_norm")
    note = "Of the task loss, before clipping" + (f" to {limit:g}." if limit else "; nothing was clipped.")
    return chart and replace(chart, note=note)


def tokens_per_second(run: RunRecord) -> float | None:
    """Tokens without padding per second of training, without evaluations; None in runs of earlier versions."""
    events = [event for event in run.events("train") if event.get("tokens") and event.get("seconds")]
    seconds = events[-1]["seconds"] if events else 0
    return sum(event["tokens"] for event in events) / seconds if seconds else None


def _step_chart(run: RunRecord, key: str, title: str, style: str) -> Chart | None:
    events = [event for event in run.events("train") if event.get(key) is not None]
    if len(events) < 2:
        return None
    values = _numbers(events, key)
    return Chart(
        title=title,
        description=f"{values[0]:.3g} at the start, {values[-1]:.3g} at the end, highest {max(values):.3g}.",
        lines=[Line(title.lower(), *thin(_numbers(events, "step"), values), style=style)],
        x_label="optimizer step",
        whole_x=True,
        y_bounds=(0.0, math.inf),
        legend=False,
    )


def penalty_chart(run: RunRecord) -> Chart | None:
    """The penalty terms beta sum(sigma^2) and gamma L3 over the steps; None for methods without a penalty."""
    events = [event for event in run.events("train") if event.get("penalty_sigma") is not None]
    if not events:
        return None
    steps = _numbers(events, "step")
    terms = {key: _numbers(events, f"penalty_{key}") for key in ("sigma", "orthogonality")}
    method = run.recipe.get("method", {})
    both = [value for values in terms.values() for value in values if value > 0]
    apart = bool(both) and max(both) / min(both) > 50
    lines = [
        Line("\u03b2 term, sigma", *thin(steps, terms["sigma"]), style="s1"),
        Line("\u03b3 term, orthogonality", *thin(steps, terms["orthogonality"]), style="s2"),
    ]
    return Chart(
        title="Penalty terms",
        description="; ".join(
            f"{key}: {values[0]:.3g} at the start, {values[-1]:.3g} at the end" for key, values in terms.items()
        )
        + ".",
        lines=lines,
        x_label="optimizer step",
        whole_x=True,
        log_y=apart,
        from_zero=not apart,
        y_bounds=(0.0, math.inf),
        note=(
            f"Values as added to the loss: \u03b2 = {method.get('beta')}, \u03b3 = {method.get('gamma')}, "
            f"convention {method.get('convention')}."
        ),
    )

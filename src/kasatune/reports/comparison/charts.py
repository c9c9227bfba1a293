"""The charts of a comparison as inline SVG without scripts, in the style sheet's colours, which follow the theme."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from kasatune.methods.table import METHODS
from kasatune.reports import formatting
from kasatune.reports.chart_axis import Scale
from kasatune.reports.comparison.comparison_tables import lower_is_better, ordered
from kasatune.reports.comparison.conclusion import verdict_text
from kasatune.reports.formatting import compact
from kasatune.reports.svg_charts import Chart, Line

_WIDTH = 400
_ROW = 26
_LABEL = 146
_DOT = 3.6
_LETTER_ROOM = 12.0  # pixels between the centres of two letters
_LETTERS = 23

Entry = Mapping[str, Any]


def letters(task: Mapping[str, Any]) -> dict[str, str]:
    """The letter that identifies each method in the charts of a task; letters, since a number would read as a rank."""
    scored = [entry for entry in ordered(task) if entry["mean"] is not None]
    return {entry["method"]: _letter(index) for index, entry in enumerate(scored)}


def _letter(index: int) -> str:
    """A to Z, then AA, AB and so on."""
    first, last = divmod(index, 26)
    return (chr(64 + first) if first else "") + chr(65 + last)


def _label_lines(label: str) -> list[str]:
    """The label of a row, in lines that fit next to the chart."""
    return textwrap.wrap(label, _LETTERS) or [label]


def interval_chart(task: Mapping[str, Any], reference: str) -> Markup:
    """Mean and 95 % interval of every method on one axis, with the baseline as a vertical line."""
    rows = [
        (entry, entry["mean"], entry["interval"], formatting.score(entry["mean"]))
        for entry in ordered(task)
        if entry["mean"] is not None
    ]
    base = task.get("base")
    baseline = task["majority"] if base is None else base["metrics"].get(task["primary"])
    means = "; ".join(f"{entry['title']} {shown}" for entry, _, _, shown in rows)
    return _rows_chart(
        task,
        reference,
        rows,
        label=formatting.metric_title(task["primary"]),
        description=f"Means and 95 % intervals: {means}.",
        bounds=formatting.metric_range(task["primary"]),
        line=baseline,
    )


def difference_chart(task: Mapping[str, Any], reference: str, reference_title: str) -> Markup | None:
    """The difference of every trained method to the reference with its 95 % interval, zero and the margin.

    None if no difference has an interval.
    """
    rows = []
    for entry in ordered(task):
        difference = entry["difference"]
        if entry["fitted"] or not difference or difference["mean"] is None or not difference["interval"]:
            continue
        shown = f"{formatting.signed(difference['mean'])}, {verdict_text(difference)}"
        rows.append((entry, difference["mean"], difference["interval"], shown))
    if not rows:
        return None
    reach = formatting.metric_range(task["primary"])
    width = None if reach is None else reach[1] - reach[0]
    margins = [entry["difference"].get("margin") for entry, _, _, _ in rows]
    title = formatting.metric_title(task["primary"])
    return _rows_chart(
        task,
        reference,
        rows,
        label=f"{title} minus that of {reference_title}",
        description="Differences and 95 % intervals: "
        + "; ".join(f"{entry['title']} {shown}" for entry, _, _, shown in rows),
        bounds=None if width is None else (-width, width),
        line=0.0,
        margin=margins[0],
    )


def trade_off_chart(
    task: Mapping[str, Any],
    reference: str,
    cost: Callable[[Entry], float | None],
    label: str,
    *,
    log: bool = True,
    trail: Callable[[Entry], Sequence[tuple[float, float]]] = lambda entry: (),
) -> Markup | None:
    """The mean score of every method against a cost, with the Pareto front as a dashed line.

    Points lie at their exact values and carry the letters of the table. None if fewer than two methods have the cost.

    Args:
        task: the task.
        reference: the reference method.
        cost: the cost of a method; None if it has none.
        label: name of the cost.
        log: whether the cost has a logarithmic axis, on which costs of 0 and below are not shown.
        trail: earlier points (cost, score) of a method, joined by a thin line that ends at its point.
    """
    points = [
        (entry, float(value))
        for entry in ordered(task)
        if entry["mean"] is not None and (value := cost(entry)) is not None and (value > 0 or not log)
    ]
    if len(points) < 2:
        return None
    trails = {entry["method"]: [*trail(entry), (value, entry["mean"])] for entry, value in points}
    costs = [value for line in trails.values() for value, _ in line]
    scores = [score for line in trails.values() for _, score in line]
    height, floor = 280, 246
    x_scale = Scale(costs, 62, _WIDTH - 20, log=log, margin=0.06)
    y_scale = Scale(scores, floor - 12, 18, log=False, bounds=formatting.metric_range(task["primary"]))
    sign = -1 if lower_is_better(task) else 1
    front = pareto([(value, sign * entry["mean"]) for entry, value in points])
    named = ", ".join(points[index][0]["title"] for index in front)
    title = formatting.metric_title(task["primary"])
    parts = [_open(height, f"{title} against {label}. Not beaten in both by any other method: {named}.")]
    parts += _y_axis(y_scale, 46)
    parts += _x_axis(x_scale, floor, label, left=46, grid=0)
    parts += [
        Markup('<path class="trail {}" d="{}"/>').format(
            _style(entry, reference), _path((x_scale(x), y_scale(y)) for x, y in trails[entry["method"]])
        )
        for entry, _ in points
        if len(trails[entry["method"]]) > 1
    ]
    ends = [(points[index][1], points[index][0]["mean"]) for index in front]
    parts.append(Markup('<path class="front" d="{}"/>').format(_path((x_scale(x), y_scale(y)) for x, y in ends)))
    names = letters(task)
    dots = [(x_scale(value) or 0.0, y_scale(entry["mean"]) or 0.0) for entry, value in points]
    for (entry, value), (x, y), (letter_x, letter_y) in zip(points, dots, _letter_places(dots, floor), strict=True):
        what = f"{entry['title']}: {formatting.score(entry['mean'])} at {value:,.4g}"
        distance = math.hypot(letter_x - x, letter_y - y)
        if distance > _LETTER_ROOM + 1:
            near = 1 - 6 / distance
            parts.append(
                Markup('<line class="leader" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
                    x, y, x + near * (letter_x - x), y + near * (letter_y - y)
                )
            )
        parts.append(
            Markup(
                '<g><title>{}</title><circle class="mark {}" cx="{:.1f}" cy="{:.1f}" r="{}"/>'
                '<text class="mark" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text></g>'
            ).format(what, _style(entry, reference), x, y, _DOT, letter_x, letter_y + 3.6, names[entry["method"]])
        )
    return Markup("").join([*parts, Markup("</svg>")])


def forgetting_chart(task: Mapping[str, Any], reference: str) -> Markup | None:
    """The mean score of every trained method against forgetting, with its epochs as a line; None without forgetting."""

    def forgotten(entry: Entry) -> float | None:
        return None if entry["fitted"] else entry.get("endpoints", {}).get("forgetting", {}).get("mean")

    def epochs(entry: Entry) -> list[tuple[float, float]]:
        scores = {point[0]: point[1] for point in entry["curve"]}
        return [(value, scores[epoch]) for epoch, value in entry["forgetting_curve"][:-1] if epoch in scores]

    kinds = {(entry["costs"].get("retention") or {}).get("kind") for entry in task["results"] if entry["costs"]}
    drift = "feature_drift" in kinds
    label = "drift of features of unrelated text" if drift else "rise of the loss on unrelated text, nats per token"
    return trade_off_chart(task, reference, forgotten, label, log=False, trail=epochs)


def rate_chart(task: Mapping[str, Any], reference: str) -> Chart | None:
    """The score of the search trials against the learning rate; None without a search of at least two rates."""
    lines: list[tuple[Entry, list[float], list[float]]] = []
    for entry in ordered(task):
        trials = (entry["search"] or {}).get("trials", ())
        points = sorted(
            (trial["settings"]["learning_rate"], trial["score"])
            for trial in trials
            if trial["score"] is not None and "learning_rate" in trial["settings"]
        )
        if len(points) > 1:
            lines.append((entry, [rate for rate, _ in points], [score for _, score in points]))
    if not lines:
        return None
    title = formatting.metric_title(task["primary"])
    return Chart(
        title=f"{formatting.sentence(title)} against learning rate",
        description=f"{title} of the search trials by learning rate, for {len(lines)} methods.",
        lines=_named_lines(lines, reference),
        x_label="learning rate",
        log_x=True,
        y_bounds=formatting.metric_range(task["primary"]),
        height=280,
    )


def curve_chart(task: Mapping[str, Any], reference: str) -> Chart | None:
    """The mean score over the epochs: the best method of each colour by name, the others thin; None without any."""
    entries = [entry for entry in ordered(task) if len(entry["curve"]) > 1]
    if not entries:
        return None
    lines = _named_lines(
        [(entry, [point[0] for point in entry["curve"]], [point[1] for point in entry["curve"]]) for entry in entries],
        reference,
    )
    first = entries[0]
    return Chart(
        title="Learning curves",
        description=f"{first['title']}: {first['curve'][0][1]:.4f} after the first epoch, "
        f"{first['curve'][-1][1]:.4f} after the last.",
        lines=lines,
        x_label="epoch",
        whole_x=True,
        y_bounds=formatting.metric_range(task["primary"]),
        height=280,
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, score) points that no other point beats in both, by ascending cost."""
    front: list[int] = []
    best = -math.inf
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front


def _named_lines(lines: Sequence[tuple[Entry, list[float], list[float]]], reference: str) -> list[Line]:
    """A line for each method, given best first: the best method of each colour by name, the others thin."""
    best: dict[str, str] = {}
    for entry, _, _ in lines:
        best.setdefault(_style(entry, reference), entry["method"])
    named = [line for line in lines if line[0]["method"] in best.values()]
    others = [Line("others", x, y, "fine") for entry, x, y in lines if entry["method"] not in best.values()]
    return [*others, *(Line(entry["title"], x, y, _style(entry, reference), dots=True) for entry, x, y in named)]


def _rows_chart(
    task: Mapping[str, Any],
    reference: str,
    rows: Sequence[tuple[Entry, float, Sequence[float] | None, str]],
    *,
    label: str,
    description: str,
    bounds: tuple[float, float] | None,
    line: float | None,
    margin: float | None = None,
) -> Markup:
    """One row for each method with a dot and an interval, a dotted vertical line, and the margin around it shaded."""
    values = [v for _, mean, interval, _ in rows for v in (mean, *(interval or ()))]
    values += [] if line is None else [line, *(() if margin is None else (line - margin, line + margin))]
    scale = Scale(values, _LABEL + 8, _WIDTH - 12, log=False, margin=0.04, bounds=bounds)
    names = letters(task)
    labels = [_label_lines(f"{names[entry['method']]} {entry['title']}") for entry, _, _, _ in rows]
    heights = [max(_ROW, 11 * len(lines) + 8) for lines in labels]
    floor = sum(heights) + 14
    parts = [_open(floor + 34, description)]
    parts += _x_axis(scale, floor, label, left=_LABEL + 8, grid=4)
    at = None if line is None else scale(line)
    if at is not None and line is not None and margin is not None:
        low, high = scale(line - margin) or 0.0, scale(line + margin) or 0.0
        parts.append(
            Markup('<rect class="margin" x="{:.1f}" y="4" width="{:.1f}" height="{}"/>').format(
                low, high - low, floor - 4
            )
        )
    if at is not None:
        parts.append(Markup('<line class="majority" x1="{0:.1f}" x2="{0:.1f}" y1="4" y2="{1}"/>').format(at, floor))
    top = 4.0
    for (entry, mean, interval, shown), lines, height in zip(rows, labels, heights, strict=True):
        y = top + height / 2
        top += height
        style = _style(entry, reference)
        for number, words in enumerate(lines):
            parts.append(
                Markup('<text class="name" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                    _LABEL, y + 4 + 11 * (number - (len(lines) - 1) / 2), words
                )
            )
        if interval:
            reach = bounds or (-math.inf, math.inf)
            low, high = (scale(min(max(value, reach[0]), reach[1])) for value in interval)
            parts.append(
                Markup('<path class="whisker {}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(style, low, y, high, y)
            )
        parts.append(
            Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>').format(
                style, scale(mean), y, f"{entry['title']}: {shown}"
            )
        )
    return Markup("").join([*parts, Markup("</svg>")])


def _path(points: Iterable[tuple[float | None, float | None]]) -> str:
    known = [(x, y) for x, y in points if x is not None and y is not None]
    return "".join(f"{'L' if place else 'M'}{x:.1f} {y:.1f}" for place, (x, y) in enumerate(known))


def _style(entry: Entry, reference: str) -> str:
    """Style class by meaning: "s1" KaSA and its variants, "s2" the reference, "fine" baselines, "s3" all others."""
    info = METHODS.get(entry["name"])
    if info is not None and info.highlight:
        return "s1"
    if entry["method"] == reference:
        return "s2"
    return "fine" if entry["fitted"] else "s3"


def _letter_places(dots: Sequence[tuple[float, float]], floor: float) -> list[tuple[float, float]]:
    """The centre of the letter of each dot: the nearest free place around it, inside the chart."""
    taken: list[tuple[float, float]] = []
    for x, y in dots:
        around = [
            (x + radius * math.cos(math.radians(angle)), y - radius * math.sin(math.radians(angle)))
            for radius in (_LETTER_ROOM, 18.0, 25.0, 32.0, 40.0, 50.0)
            for angle in (90, 270, 45, 135, 315, 225, 0, 180, 67, 113, 293, 247)
        ]
        free = [
            place
            for place in around
            if 54 < place[0] < _WIDTH - 12
            and 8 < place[1] < floor - 8
            and all(math.dist(place, other) >= _LETTER_ROOM for other in taken)
            and all(math.dist(place, dot) >= 9.0 for dot in dots)
        ]
        taken.append(next(iter(free), around[0]))
    return taken


def _open(height: int, description: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(_WIDTH, height, description)


def _x_axis(scale: Scale, floor: int, label: str, *, left: int, grid: int) -> list[Markup]:
    right = _WIDTH - 8
    parts = [Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, right, floor, floor)]
    for value in scale.ticks(4):
        x = scale(value)
        if x is not None:
            if grid:
                parts.append(
                    Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(x, grid, floor)
                )
            parts.append(
                Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                    x, floor + 14, compact(value)
                )
            )
    parts.append(
        Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (left + right) / 2, floor + 29, label
        )
    )
    return parts


def _y_axis(scale: Scale, left: int) -> list[Markup]:
    parts = []
    for value in scale.ticks(4):
        y = scale(value)
        if y is not None:
            parts.append(
                Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(left, _WIDTH - 8, y, y)
            )
            parts.append(
                Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                    left - 6, y + 3.5, compact(value)
                )
            )
    return parts

"""The charts of a comparison as inline SVG without scripts, in the style sheet's colours, which follow the theme."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from kasatune.methods.table import METHODS
from kasatune.reports import formatting
from kasatune.reports.chart_axis import Scale
from kasatune.reports.comparison.comparison_tables import ordered
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
    """Mean and 95 % interval of every method on one axis, with the majority class as a vertical line."""
    entries = [entry for entry in ordered(task) if entry["mean"] is not None]
    values = [v for entry in entries for v in (entry["mean"], *(entry["interval"] or ()))] + [task["majority"]]
    scale = Scale(
        values, _LABEL + 8, _WIDTH - 12, log=False, margin=0.04, bounds=formatting.metric_range(task["primary"])
    )
    height = _ROW * len(entries) + 48
    floor = height - 34
    means = "; ".join(f"{entry['title']} {formatting.score(entry['mean'])}" for entry in entries)
    parts = [_open(height, f"Means and 95 % intervals over the seeds: {means}.")]
    parts += _x_axis(scale, floor, formatting.metric_title(task["primary"]), left=_LABEL + 8, grid=4)
    at = scale(task["majority"])
    parts.append(Markup('<line class="majority" x1="{0:.1f}" x2="{0:.1f}" y1="4" y2="{1}"/>').format(at, floor))
    for row, entry in enumerate(entries):
        y = _ROW * row + 17
        style = _style(entry, reference)
        lines = _label_lines(f"{_letter(row)} {entry['title']}")
        for number, line in enumerate(lines):
            parts.append(
                Markup('<text class="name" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                    _LABEL, y + 4 + 11 * (number - (len(lines) - 1) / 2), line
                )
            )
        if entry["interval"]:
            low, high = (scale(value) for value in entry["interval"])
            parts.append(Markup('<path class="whisker {}" d="M{:.1f} {}L{:.1f} {}"/>').format(style, low, y, high, y))
        parts.append(
            Markup('<circle class="{}" cx="{:.1f}" cy="{}" r="4"><title>{}</title></circle>').format(
                style, scale(entry["mean"]), y, f"{entry['title']}: {formatting.score(entry['mean'])}"
            )
        )
    return Markup("").join([*parts, Markup("</svg>")])


def trade_off_chart(
    task: Mapping[str, Any], reference: str, cost: Callable[[Entry], float | None], label: str
) -> Markup | None:
    """The mean score of every method against a cost on a logarithmic axis, with the Pareto front as a dashed line.

    Points lie at their exact values and carry the letters of the table. None if fewer than two methods have the cost.
    """
    points = [
        (entry, float(value))
        for entry in ordered(task)
        if entry["mean"] is not None and (value := cost(entry)) is not None and value > 0
    ]
    if len(points) < 2:
        return None
    height, floor = 280, 246
    x_scale = Scale([value for _, value in points], 62, _WIDTH - 20, log=True, margin=0.06)
    y_scale = Scale(
        [entry["mean"] for entry, _ in points],
        floor - 12,
        18,
        log=False,
        bounds=formatting.metric_range(task["primary"]),
    )
    front = pareto([(value, entry["mean"]) for entry, value in points])
    named = ", ".join(points[index][0]["title"] for index in front)
    title = formatting.metric_title(task["primary"])
    parts = [_open(height, f"{title} against {label}. Not beaten in both by any other method: {named}.")]
    parts += _y_axis(y_scale, 46)
    parts += _x_axis(x_scale, floor, label, left=46, grid=0)
    line = "".join(
        f"{'L' if place else 'M'}{x_scale(points[index][1]):.1f} {y_scale(points[index][0]['mean']):.1f}"
        for place, index in enumerate(front)
    )
    parts.append(Markup('<path class="front" d="{}"/>').format(line))
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


def curve_chart(task: Mapping[str, Any], reference: str) -> Chart | None:
    """The mean score over the epochs: the best method of each colour by name, the others thin; None without any."""
    entries = [entry for entry in ordered(task) if len(entry["curve"]) > 1]
    if not entries:
        return None
    best: dict[str, Entry] = {}
    for entry in entries:
        best.setdefault(_style(entry, reference), entry)
    others = [entry for entry in entries if entry not in best.values()]
    lines = [_curve(entry, "fine", "others") for entry in others]
    lines += [_curve(entry, style, entry["title"], dots=True) for style, entry in best.items()]
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


def _curve(entry: Entry, style: str, label: str, *, dots: bool = False) -> Line:
    epochs, means = [point[0] for point in entry["curve"]], [point[1] for point in entry["curve"]]
    return Line(label, epochs, means, style, dots=dots)


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

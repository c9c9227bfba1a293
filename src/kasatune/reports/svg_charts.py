"""Line charts as inline SVG, without scripts or fonts; colours come from the page's style sheet and follow its theme.

A report of a large model has hundreds of charts, so each takes microseconds to draw and a few kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from kasatune.reports.chart_axis import Scale
from kasatune.reports.formatting import compact

MAX_POINTS = 300  # per line; more are indistinguishable at this width


@dataclass(frozen=True)
class Line:
    """One line of a chart; a NaN in `y` breaks it.

    Attributes:
        label: its name in the legend.
        x: positions along the horizontal axis, ascending.
        y: values, as many as `x`.
        style: class of the style sheet: "s1" to "s4" by meaning, "fine" for many thin lines.
        dots: mark each point.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "s1"
    dots: bool = False


@dataclass(frozen=True)
class Band:
    """The area between two lines.

    Attributes:
        label: its name in the legend.
        x: positions along the horizontal axis, ascending.
        low: lower edge.
        high: upper edge.
    """

    label: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Region:
    """A part of the horizontal axis, shaded over the full height."""

    label: str
    start: float
    stop: float


@dataclass(frozen=True)
class Chart:
    """A chart with its title, description, legend and note.

    Attributes:
        title: heading.
        description: one or two sentences with numbers, for screen readers.
        x_label: name of the horizontal axis.
        log_x, log_y: logarithmic axes, on which values that are not positive are not shown.
        reverse_x: whether the largest value is at the left.
        from_zero: whether the vertical axis includes zero.
        whole_x: whether ticks of the horizontal axis are integers only.
        y_bounds: smallest and largest possible value, beyond which the vertical axis does not extend.
        note: text below the chart.
        width, height: in CSS pixels before scaling.
    """

    title: str
    description: str
    lines: Sequence[Line]
    x_label: str
    bands: Sequence[Band] = ()
    regions: Sequence[Region] = ()
    log_x: bool = False
    log_y: bool = False
    reverse_x: bool = False
    from_zero: bool = False
    whole_x: bool = False
    y_bounds: tuple[float, float] | None = None
    note: str = ""
    width: int = 400
    height: int = 230
    legend: bool = field(default=True)

    @property
    def legend_entries(self) -> list[tuple[str, str]]:
        """(style class, label) of every entry of the legend."""
        if not self.legend:
            return []
        named = [(line.style, line.label) for line in self.lines]
        named += [("band", band.label) for band in self.bands]
        named += [("region", region.label) for region in self.regions]
        return list(dict.fromkeys(named))

    @property
    def svg(self) -> Markup:
        """The chart as an <svg> element."""
        return _draw(self)


def thin(x: Sequence[float], y: Sequence[float], limit: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """At most `limit` points, each the mean of neighbouring points; NaN is left out of the mean."""
    size = math.ceil(len(x) / limit)
    if size <= 1:
        return list(x), list(y)
    starts = range(0, len(x), size)
    return [_mean(x[i : i + size]) for i in starts], [_mean(y[i : i + size]) for i in starts]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _draw(chart: Chart) -> Markup:
    left, right, top, bottom = 46, 10, 8, 34
    xs = [v for item in (*chart.lines, *chart.bands) for v in item.x]
    ys = [v for line in chart.lines for v in line.y] + [v for b in chart.bands for v in (*b.low, *b.high)]
    ys += [0.0] if chart.from_zero else []
    across = (chart.width - right, left) if chart.reverse_x else (left, chart.width - right)
    x_scale = Scale(xs, *across, log=chart.log_x)
    y_scale = Scale(ys, chart.height - bottom, top, log=chart.log_y, margin=0.06, bounds=chart.y_bounds)
    parts = [
        Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            chart.width, chart.height, f"{chart.title}. {chart.description}"
        )
    ]
    floor = chart.height - bottom
    for region in chart.regions:
        edges = sorted(edge for edge in (x_scale(region.start), x_scale(region.stop)) if edge is not None)
        if len(edges) == 2:
            parts.append(
                Markup('<rect class="region" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>').format(
                    edges[0], top, max(edges[1] - edges[0], 1.5), floor - top
                )
            )
    parts += _axes(chart, x_scale, y_scale, left=left, right=chart.width - right, floor=floor)
    for band in chart.bands:
        upper = _points(band.x, band.high, x_scale, y_scale)
        lower = _points(band.x, band.low, x_scale, y_scale)
        if upper and lower:
            outline = " ".join(
                f"{x:.1f},{y:.1f}" for x, y in [p for p in upper if p] + [p for p in reversed(lower) if p]
            )
            parts.append(Markup('<polygon class="band" points="{}"/>').format(outline))
    for line in chart.lines:
        parts += _line(line, x_scale, y_scale)
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def _axes(chart: Chart, x_scale: Scale, y_scale: Scale, *, left: int, right: int, floor: int) -> list[Markup]:
    parts = []
    for value in y_scale.ticks(4):
        y = y_scale(value)
        if y is not None:
            parts.append(
                Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(left, right, y, y)
            )
            parts.append(
                Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                    left - 6, y + 3.5, compact(value)
                )
            )
    parts.append(Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, right, floor, floor))
    for value in x_scale.ticks(5):
        x = x_scale(value)
        if x is not None and (not chart.whole_x or abs(value - round(value)) < 1e-9):
            anchor = "end" if x > right - 8 else "middle"
            parts.append(
                Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
                    x, floor + 14, anchor, compact(value)
                )
            )
    middle = (left + right) / 2
    parts.append(
        Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            middle, floor + 29, chart.x_label
        )
    )
    return parts


def _points(x: Sequence[float], y: Sequence[float], x_scale: Scale, y_scale: Scale) -> list[tuple[float, float] | None]:
    points: list[tuple[float, float] | None] = []
    for across, up in zip(x, y, strict=True):
        at_x, at_y = x_scale(across), y_scale(up)
        points.append(None if at_x is None or at_y is None else (at_x, at_y))
    return points


def _line(line: Line, x_scale: Scale, y_scale: Scale) -> list[Markup]:
    points = _points(line.x, line.y, x_scale, y_scale)
    path, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        path.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
        pen = "L"
    parts = [Markup('<path class="{}" d="{}"/>').format(line.style, "".join(path))] if path else []
    if line.dots or len([p for p in points if p]) == 1:
        for point, x, y in zip(points, line.x, line.y, strict=True):
            if point:
                parts.append(
                    Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>').format(
                        line.style, *point, f"{line.label}: {y:.4g} at {x:.6g}"
                    )
                )
    return parts


def swatch(style: str) -> Markup:
    """The sample of a line, band or region in a legend."""
    if style in ("band", "region"):
        return Markup(
            '<svg class="swatch" viewBox="0 0 22 10" aria-hidden="true"><rect class="{}" width="22" height="10"/></svg>'
        ).format(escape(style))
    return Markup(
        '<svg class="swatch" viewBox="0 0 22 10" aria-hidden="true"><path class="{}" d="M0 5L22 5"/></svg>'
    ).format(escape(style))

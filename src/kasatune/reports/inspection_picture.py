"""Draw the result of `kasatune inspect` as a standalone SVG: singular values, sigma and alignment of every layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kasatune.errors import OutputError
from kasatune.io.atomic import write_text
from kasatune.reports.chart_axis import Scale
from kasatune.reports.formatting import compact
from kasatune.wording import counted

_BASE, _DROPPED, _UPDATE, _CHANCE = "#1f5fbf", "#b8500c", "#167a5b", "#7d8aa0"
_LEFT, _COLUMN, _PANEL, _GAP, _TOP = 86, 24, 240, 46, 48
_LETTER = 6.2  # width of a letter in pixels, to reserve space for layer names

Point = tuple[int, float, float, str]
"""Index of the layer, shift in columns, value, colour."""


def check_picture(path: Path) -> None:
    """Check the path of a picture.

    Raises:
        OutputError: it does not end in .svg, is a directory, or lies in a directory that does not exist.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "is a directory" if path.is_dir() else "cannot be written: its directory does not exist"
        raise OutputError(f"{path} {what}; name a file in an existing directory")
    if path.suffix.lower() != ".svg":
        raise OutputError(
            f"{path}: the picture is an SVG file; use a name that ends in .svg, such as {path.with_suffix('.svg')}"
        )


def draw_inspection(inspection: Mapping[str, Any], path: Path) -> None:
    """Draw three panels over the layers: singular values of W (kept, truncated) and of the update; |sigma|; alignment.

    Args:
        inspection: the result of `kasatune.adapter_tools.inspect.inspect`.
        path: the SVG file; replaced if it exists.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        write_text(path.absolute(), str(_picture(inspection)) + "\n")
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror}); free disk space or choose another path"
        ) from None


def _picture(inspection: Mapping[str, Any]) -> Markup:
    layers = inspection["layers"]
    names = [str(layer["name"]) for layer in layers]
    title = f"{inspection['format']} adapter, {counted(len(layers), 'layer')}"
    width = max(560, _LEFT + _COLUMN * len(layers) + 24)
    panels = [
        _panel(
            "singular values",
            _spectra(layers),
            (("W, kept", _BASE), ("W, truncated", _DROPPED), ("update", _UPDATE)),
            log=True,
            missing="no singular values",
        ),
        _panel(
            "|sigma|",
            _sigma(layers),
            (),
            log=False,
            bounds=(0.0, math.inf),
            missing="no sigma: this adapter is a plain LoRA",
        ),
        _panel(
            "mean squared cosine of the update with W",
            _alignment(layers),
            (("top directions", _BASE), ("bottom directions", _DROPPED), ("chance", _CHANCE)),
            log=False,
            bounds=(0.0, 1.0),
            missing="requires the base model and a nonzero update",
        ),
    ]
    bottom = _TOP + len(panels) * (_PANEL + _GAP)
    height = round(bottom + _LETTER * max(map(len, names), default=0) + 10)
    parts = [
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img" '
            'font-family="system-ui, sans-serif" font-size="11" fill="#1b1c1e"><title>{2}</title>'
            '<rect width="100%" height="100%" fill="#fff"/><text x="{3}" y="22" font-size="15">{2}</text>'
        ).format(width, height, title, _LEFT)
    ]
    for number, panel in enumerate(panels):
        top = _TOP + number * (_PANEL + _GAP)
        parts += panel(top, width - 16)
    for index, name in enumerate(names):
        x = _x(index, 0.0)
        parts.append(
            Markup('<text x="{0:.1f}" y="{1}" transform="rotate(90 {0:.1f} {1})" dy="4">{2}</text>').format(
                x, bottom - _GAP + 26, name
            )
        )
    return Markup("").join([*parts, Markup("</svg>")])


def _panel(
    label: str,
    points: Sequence[Point],
    legend: Sequence[tuple[str, str]],
    *,
    log: bool,
    missing: str,
    bounds: tuple[float, float] | None = None,
) -> Any:
    def draw(top: int, right: int) -> list[Markup]:
        floor = top + _PANEL
        parts = [Markup('<text x="{}" y="{}" font-weight="600">{}</text>').format(_LEFT, top + 10, label)]
        x = right
        for name, colour in reversed(legend):
            x -= round(_LETTER * len(name))
            parts.append(Markup('<text x="{}" y="{}">{}</text>').format(x, top + 10, name))
            x -= 16
            parts.append(Markup('<rect x="{}" y="{}" width="12" height="4" fill="{}"/>').format(x, top + 4, colour))
            x -= 12
        parts.append(
            Markup('<line x1="{}" x2="{}" y1="{}" y2="{}" stroke="#5d6066"/>').format(_LEFT, right, floor, floor)
        )
        if not points:
            middle = (_LEFT + right) / 2
            note = Markup('<text x="{}" y="{}" text-anchor="middle" fill="#5d6066">{}</text>')
            return [*parts, note.format(middle, top + _PANEL / 2, missing)]
        values = [value for _, _, value, _ in points] + ([] if log else [0.0])
        scale = Scale(values, floor - 6, top + 24, log=log, margin=0.02, bounds=bounds)
        for value in scale.ticks(5):
            y = scale(value)
            parts.append(
                Markup(
                    '<line x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}" stroke="#ececea"/>'
                    '<text x="{3}" y="{4:.1f}" text-anchor="end" fill="#5d6066">{5}</text>'
                ).format(_LEFT, right, y, _LEFT - 6, (y or 0.0) + 4, compact(value))
            )
        for index, shift, value, colour in points:
            y = scale(value)
            if y is not None:
                parts.append(
                    Markup('<rect x="{:.1f}" y="{:.1f}" width="7" height="1.8" fill="{}" opacity="0.75"/>').format(
                        _x(index, shift) - 3.5, y - 0.9, colour
                    )
                )
        return parts

    return draw


def _x(index: int, shift: float) -> float:
    return _LEFT + _COLUMN * (index + 0.5 + shift)


def _spectra(layers: Sequence[Mapping[str, Any]]) -> list[Point]:
    points: list[Point] = []
    for index, layer in enumerate(layers):
        dropped = (layer.get("dropped") or {}).get("singular_values", [])
        base = (layer.get("base") or {}).get("singular_values", [])
        points += [(index, -0.18, value, _BASE) for value in base[: len(base) - len(dropped)] if value > 0]
        points += [(index, -0.18, value, _DROPPED) for value in dropped if value > 0]
        points += [(index, 0.18, value, _UPDATE) for value in layer["update"]["singular_values"] if value > 0]
    return points


def _sigma(layers: Sequence[Mapping[str, Any]]) -> list[Point]:
    return [
        (index, 0.0, abs(value), _UPDATE) for index, layer in enumerate(layers) for value in layer.get("sigma") or ()
    ]


def _alignment(layers: Sequence[Mapping[str, Any]]) -> list[Point]:
    points: list[Point] = []
    for index, layer in enumerate(layers):
        alignment = (layer.get("base") or {}).get("alignment")
        if alignment:
            colours = {"top": _BASE, "bottom": _DROPPED, "chance": _CHANCE}
            points += [(index, 0.0, alignment[name], colour) for name, colour in colours.items()]
    return points

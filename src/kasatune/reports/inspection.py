"""The picture of `kasatune inspect`, from its plain data."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kasatune.errors import OutputError
from kasatune.io.atomic import write_bytes

_BASE, _DROPPED, _UPDATE = "#4c72b0", "#c44e52", "#dd8452"


def check_picture(path: Path) -> None:
    """Where a picture is to go, there is a directory and none of its name.

    Raises:
        OutputError: otherwise.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "is a directory" if path.is_dir() else "cannot be written: there is no such directory"
        raise OutputError(f"{path} {what}; name a file in an existing directory")


def draw_inspection(found: Mapping[str, Any], path: Path) -> None:
    """Three panels over the layers: singular values of W, dropped and of the update; |sigma|; alignment with W.

    Args:
        found: what `kasatune.adapter_tools.inspect.inspect` gives.
        path: of the PNG; replaced when it is drawn.

    Raises:
        OutputError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = found["layers"]
    figure = Figure(figsize=(max(8.0, 0.28 * len(layers) + 4), 11), layout="constrained")
    FigureCanvasAgg(figure)
    spectra, sigma, alignment = figure.subplots(3, 1, sharex=True)
    _draw_spectra(spectra, layers)
    _draw_sigma(sigma, layers)
    _draw_alignment(alignment, layers)
    alignment.set_xticks(range(len(layers)), [layer["name"] for layer in layers], rotation=90, fontsize=6)
    figure.suptitle(f"{found['format']} adapter, {len(layers)} layers")
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format="png")
    try:
        write_bytes(path.absolute(), content.getvalue())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); free space or choose another place") from None


def _draw_spectra(axes: Any, layers: Sequence[Mapping[str, Any]]) -> None:
    for place, layer in enumerate(layers):
        dropped = (layer.get("dropped") or {}).get("singular_values", [])
        kept = (layer.get("base") or {}).get("singular_values", [])
        kept = kept[: len(kept) - len(dropped)]
        parts = ((kept, _BASE, -0.15, "W, kept"), (dropped, _DROPPED, -0.15, "W, dropped"))
        for values, colour, shift, label in (*parts, (layer["update"]["singular_values"], _UPDATE, 0.15, "update")):
            shown = [value for value in values if value > 0]
            axes.plot(
                [place + shift] * len(shown), shown, "_", color=colour, alpha=0.6, label=label if place == 0 else None
            )
    axes.set_yscale("log")
    axes.set_ylabel("singular values")
    _legend(axes)


def _draw_sigma(axes: Any, layers: Sequence[Mapping[str, Any]]) -> None:
    axes.set_ylabel("|sigma|")
    if not any(layer.get("sigma") for layer in layers):
        axes.text(0.5, 0.5, "no sigma: this adapter is a plain LoRA", ha="center", transform=axes.transAxes)
        return
    for place, layer in enumerate(layers):
        values = [abs(value) for value in layer.get("sigma") or ()]
        axes.plot([place] * len(values), values, ".", color=_UPDATE, markersize=4)


def _draw_alignment(axes: Any, layers: Sequence[Mapping[str, Any]]) -> None:
    axes.set_ylabel("mean squared cosine\nof the update with W")
    known = [(place, (layer.get("base") or {}).get("alignment")) for place, layer in enumerate(layers)]
    known = [(place, found) for place, found in known if found]
    if not known:
        axes.text(0.5, 0.5, "needs the base, and an update that is not zero", ha="center", transform=axes.transAxes)
        return
    for name, colour, marker in (("top", _BASE, "^"), ("bottom", _DROPPED, "v"), ("chance", "grey", "_")):
        axes.plot([place for place, _ in known], [found[name] for _, found in known], marker, color=colour, label=name)
    _legend(axes)


def _legend(axes: Any) -> None:
    """Above the panel, where no point lies."""
    axes.legend(fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, frameon=False)

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from kasatune.cli.arguments import AdapterDirectory, BaseModel, Json
from kasatune.cli.console import note, print_json, print_table, results_only

_HEAD = ["layer", "shape", "r", "dropped", "back", "|sigma|", "|dW|/|W|", "rank of dW", "defect A, B", "top", "bottom"]


def command(
    directory: AdapterDirectory,
    base: BaseModel = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the spectra to this SVG file.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Show what training changed in each layer: what was truncated, what returned, where the update points.

    dropped: truncated share of the squared norm of W; back: truncated directions that the update restores; rank of
    dW: effective rank of the update; defect: distance of A and B from orthonormal; top, bottom: mean squared cosine
    between the update and the first and last singular directions of W.

    Example: kasatune inspect runs/rte-kasa --picture rte.svg
    """
    with results_only():
        from kasatune.reports.inspection_picture import check_picture, draw_inspection

        if picture is not None:
            check_picture(picture)
        from kasatune.adapter_tools.inspect import inspect

        inspection = inspect(directory, base)
        if picture is not None:
            draw_inspection(inspection, picture)
    if json:
        print_json(inspection)
        return
    print_table(
        _HEAD, [_row(layer) for layer in inspection["layers"]], title=f"{inspection['format']} adapter", numbers=9
    )
    if inspection["base"] is None:
        note("the base is not on this machine: give --base MODEL to see what was truncated")
    if picture is not None:
        note(f"drawn to {picture}")


def _row(layer: Mapping[str, Any]) -> list[str]:
    base, dropped, update = layer.get("base") or {}, layer.get("dropped") or {}, layer["update"]
    sigma, defect = layer.get("sigma"), layer.get("orthogonality")
    alignment = base.get("alignment") or {}
    back = f"{dropped['come_back']}/{dropped['count']}" if "come_back" in dropped else ""
    return [
        layer["name"],
        "x".join(map(str, layer["shape"])),
        str(layer["rank"]),
        _number(dropped.get("energy")),
        back,
        _number(sum(map(abs, sigma)) / len(sigma) if sigma else None),
        _number(base.get("update_share")),
        _number(update["effective_rank"]),
        f"{_number(defect['A'])}, {_number(defect['B'])}" if defect else "",
        _number(alignment.get("top")),
        _number(alignment.get("bottom")),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kasatune.cli.arguments import BaseModel, Json
from kasatune.cli.console import note, print_json, print_table, results_only
from kasatune.errors import InputError
from kasatune.wording import counted

_HEAD = ["layer", "shape", "r", "dropped", "back", "|sigma|", "|dW|/|W|", "rank of dW", "defect A, B", "top", "bottom"]


_TRUNCATION_HEAD = ["layers", "number", "by magnitude: loss", "dropped", "by activation: loss", "dropped"]


def command(
    directory: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_ADAPTER_DIR|MODEL",
            help="A run or adapter directory; with --truncation a base model: hub id, folder, GGUF file or "
            "package:NAME.",
            show_default=False,
        ),
    ],
    base: BaseModel = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the spectra to this SVG file.", show_default=False)
    ] = None,
    truncation: Annotated[
        bool,
        typer.Option("--truncation", help="Measure what dropping a component of rank --rank does to a base model."),
    ] = False,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Show what the routers of a mixture choose on the lines of this file; repeat it for several files.",
            show_default=False,
        ),
    ] = None,
    rank: Annotated[int, typer.Option(metavar="R", min=1, help="Rank for --truncation.")] = 8,
    json: Json = False,
) -> None:
    """Show what training changed in each layer: what was truncated, what returned, where the update points.

    dropped: truncated share of the squared norm of W; back: truncated directions that the update restores; rank of
    dW: effective rank of the update; defect: distance of A and B from orthonormal; top, bottom: mean squared cosine
    between the update and the first and last singular directions of W.

    With --truncation: the loss of a causal language model, on text that it writes itself, with a component of each
    linear layer dropped, by magnitude (KaSA as published) and by activation; dropped: the largest share of a layer's
    output.

    With --text: for an adapter that is a mixture of experts, the load of each expert and the entropy of each router, as
    a share of the largest possible, on the lines of a file, or of several, such as one for each task.

    Example: kasatune inspect runs/rte-kasa --picture rte.svg

    Example: kasatune inspect ./my-model --truncation
    """
    if truncation:
        _inspect_truncation(directory, base, picture, rank, json=json)
        return
    if text:
        _inspect_routing(Path(directory), text, base, json=json)
        return
    with results_only():
        from kasatune.reports.inspection_picture import check_picture, draw_inspection

        if picture is not None:
            check_picture(picture)
        from kasatune.adapter_tools.inspect import inspect

        inspection = inspect(Path(directory), base)
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


def _inspect_truncation(model: str, base: str | None, picture: Path | None, rank: int, *, json: bool) -> None:
    given = [name for name, value in (("--base", base), ("--picture", picture)) if value is not None]
    if given:
        raise InputError(f"{given[0]} was given with --truncation, which measures the base model named first; omit it")
    with results_only():
        from kasatune.adapter_tools.truncation import measure_truncation

        measured = measure_truncation(model, r=rank)
    if json:
        print_json(measured)
        return
    rows: list[list[str]] = []
    for entry in measured["losses"]:
        kind = entry["layers"]
        layers = [layer for layer in measured["layers"] if kind in ("all", layer["name"].rpartition(".")[2])]
        row = [kind, str(len(layers))]
        for choice in ("magnitude", "activation"):
            row += [f"{entry[choice]:.3f}", _number(max(layer[choice] for layer in layers))]
        rows.append(row)
    title = f"{measured['base']}: loss {measured['loss']:.3f} untouched, r = {measured['r']}"
    print_table(_TRUNCATION_HEAD, rows, title=title, numbers=5)
    rise = measured["losses"][-1]["magnitude"] - measured["loss"]
    if rise > 0.1:
        note(
            f"dropping by magnitude raises the loss by {rise:.2f} nats before training begins: use method: akasa, "
            "truncate_by: activation, or drop: 0"
        )


def _inspect_routing(directory: Path, texts: Sequence[Path], base: str | None, *, json: bool) -> None:
    with results_only():
        from kasatune.adapter_tools.inspect_routing import inspect_routing

        measured = inspect_routing(directory, *texts, base=base)
    if json:
        print_json(measured)
        return
    for entry in measured.get("texts", [measured]):
        rows = [
            [
                router["name"],
                " ".join(f"{load:.0%}" for load in router["load"]),
                f"{router['entropy'] / math.log(len(router['load'])):.0%}" if len(router["load"]) > 1 else "",
                str(router["items"]),
            ]
            for router in entry["routers"]
        ]
        where = f" in {entry['text']}" if "texts" in measured else ""
        title = f"{measured['format']} adapter on {counted(entry['lines'], 'line')} of text{where}"
        print_table(["router", "load of each expert", "entropy", "routed"], rows, title=title, numbers=2)


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

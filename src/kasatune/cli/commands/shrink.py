from __future__ import annotations

from typing import Annotated

import typer

from kasatune.cli.arguments import AdapterDirectory, BaseModel, Json, NewDirectory
from kasatune.cli.console import print_json, print_table, results_only, say


def command(
    directory: AdapterDirectory,
    out: NewDirectory,
    rank: Annotated[int | None, typer.Option(metavar="R", help="Maximum rank per layer.", show_default=False)] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            metavar="E", help="Share of the squared norm of each layer's update to keep, e.g. 0.99.", show_default=False
        ),
    ] = None,
    base: BaseModel = None,
    json: Json = False,
) -> None:
    """Write a smaller LoRA adapter from the largest singular triplets of each layer's update.

    Example: kasatune shrink runs/rte-kasa --energy 0.99 --out adapters/rte-small
    """
    with results_only():
        from kasatune.adapter_tools.shrink import shrink_adapter
        from kasatune.adapters.certificate import describe

        record = shrink_adapter(directory, out, rank=rank, energy=energy, base=base)
    if json:
        print_json(record)
        return
    ranks = [layer["rank"] for layer in record.get("layers", {}).values()]
    say(f"{out}: lora adapter, ranks {min(ranks)} to {max(ranks)}; {describe(record)}")
    scores = record.get("scores") or {}
    if "after" in scores:
        before, after = scores["before"], scores["after"]
        rows = [[name, f"{before[name]:.4f}", f"{after.get(name, float('nan')):.4f}"] for name in before]
        print_table([scores["split"], "before", "after"], rows, numbers=2)
    elif "reason" in scores:
        say(f"scores not measured: {scores['reason']}")

from __future__ import annotations

from typing import Annotated

import typer

from kasatune.cli.arguments import AdapterDirectory, BaseModel, Json, NewDirectory
from kasatune.cli.console import print_json, results_only, say


def command(
    directory: AdapterDirectory,
    out: NewDirectory,
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="lora, for any LoRA server; gguf, for llama.cpp; kasa, to train on; peft-kasa; authors.",
        ),
    ] = "lora",
    base: BaseModel = None,
    rank: Annotated[
        int | None, typer.Option(metavar="R", help="With lora: the nearest update of this rank.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Write an adapter in another format, with a certificate of how near it comes to its source.

    Example: kasatune export runs/rte-kasa --to lora --out adapters/rte
    """
    with results_only():
        from kasatune.adapter_tools.export import convert_adapter
        from kasatune.adapters.conversion import summary

        record = convert_adapter(directory, out, to, base=base, rank=rank)
    if json:
        print_json(record)
    else:
        say(f"{out}: {to} adapter; {summary(record)}")

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
            help="lora (any LoRA server), gguf (llama.cpp), ollama (with a Modelfile), kasa (to continue training), "
            "peft-kasa or authors.",
        ),
    ] = "lora",
    base: BaseModel = None,
    rank: Annotated[
        int | None,
        typer.Option(
            metavar="R",
            help="With lora, gguf and ollama: the nearest adapter of at most this rank in each layer. A KaSA adapter "
            "of rank r is exactly a LoRA of rank 2r.",
            show_default=False,
        ),
    ] = None,
    max_rank: Annotated[
        int | None,
        typer.Option(
            metavar="R",
            help="Largest LoRA rank that your server allows: an adapter with a larger one is refused.",
            show_default=False,
        ),
    ] = None,
    equal_ranks: Annotated[
        bool,
        typer.Option(
            "--equal-ranks",
            help="With lora: pad layers of a smaller rank with zeros to the largest, for SGLang, which reads one rank.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Convert an adapter to another format, with a certificate of the measured difference.

    Example: kasatune export runs/rte-kasa --to lora --out adapters/rte
    """
    with results_only():
        from kasatune.adapter_tools.export import convert_adapter
        from kasatune.adapters.certificate import describe

        record = convert_adapter(directory, out, to, base=base, rank=rank, max_rank=max_rank, equal_ranks=equal_ranks)
    if json:
        print_json(record)
    else:
        say(f"{out}: {to} adapter; {describe(record)}")

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from kasatune.cli.console import results_only, say
from kasatune.cli.progress_bar import make_progress
from kasatune.errors import InputError
from kasatune.wording import counted


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="The base model: hub id, folder, GGUF file or package:NAME.", show_default=False
        ),
    ],
    rank: Annotated[
        int, typer.Option("--rank", metavar="R", help="Singular triplets to truncate per layer.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new or empty directory.", show_default=False)],
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="NAME",
            help="End of a layer's name, may be repeated; or `all-linear`. Default: the layers that PEFT adapts.",
            show_default=False,
        ),
    ] = None,
    convention: Annotated[
        Literal["paper", "authors"],
        typer.Option("--convention", help="Which triplets are truncated: as in the paper, or in the authors' code."),
    ] = "paper",
    truncate_by: Annotated[
        Literal["magnitude", "activation"],
        typer.Option(
            "--truncate-by",
            help="Which component of rank R: the smallest triplets, or what activations use least (runs the model).",
        ),
    ] = "magnitude",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option("--dtype", help="The `model.dtype` of the training, if narrower than that of the files."),
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Revision of a model on the hub.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the decomposition in the directory.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier decomposition.")] = False,
) -> None:
    """Compute the tail (the truncated singular triplets) of every target weight once, for later training runs.

    Example: kasatune decompose path/to/model --rank 16 --target all-linear --out tails/model

    Then run `kasatune train RECIPE method.tails=tails/model` with the same or a lower rank. Weights are read one at a
    time; the full model is never in memory. `torchrun --nproc-per-node N -m kasatune decompose ...` shares the work.

    With --truncate-by activation the model is loaded and reads text; weights that do not fit in memory stay on disk.
    Train with method.truncate_by=activation and the same rank.
    """
    if rank < 1:
        raise InputError(f"--rank: {rank} received; must be 1 or more")
    with results_only():
        from kasatune.adapter_tools.decompose import Job, decompose

        job = Job(model, rank, tuple(target or ("default",)), convention, dtype, revision, truncate_by)
        try:
            index = decompose(job, out, device=device, resume=resume, overwrite=overwrite, display=make_progress())
        except KeyboardInterrupt as interrupt:
            resume_hint = f"{out} holds the progress so far; continue with the same command and --resume"
            interrupt.add_note(resume_hint if out.is_dir() and any(out.iterdir()) else "nothing was written")
            raise
    if os.environ.get("RANK", "0") == "0":
        files = {layer["file"] for layer in index["layers"].values() if layer["dropped"]}
        size = sum((out / file).stat().st_size for file in files)
        say(f"{out}: tails of {counted(len(index['layers']), 'layer')}, rank {rank}, {size / 1e6:.1f} MB")

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kasatune.cli.console import results_only, say
from kasatune.errors import InputError


def command(
    directory: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_ADAPTER_DIR", help="A run directory, or an adapter.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The new adapter's directory.", show_default=False)],
    to: Annotated[
        str, typer.Option(metavar="FORMAT", help="lora, for any LoRA server, or kasa, to go on training.")
    ] = "lora",
) -> None:
    """Write an adapter in another format.

    Example: kasatune export runs/rte-kasa --to lora --out adapters/rte
    """
    source = _adapter_in(directory)
    with results_only():
        from kasatune.tuner import export_adapter

        written = export_adapter(source, out, to=to)
    say(f"{written}: {to} adapter")


def _adapter_in(directory: Path) -> Path:
    """The adapter that a run directory holds, in its native form; or `directory` itself.

    Raises:
        InputError: there is none.
    """
    for folder in (directory, directory / "kasa", directory / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return folder
    what = "holds no adapter" if directory.is_dir() else "no such directory"
    raise InputError(f"{directory}: {what}; give a directory that `kasatune train` or save_pretrained wrote")

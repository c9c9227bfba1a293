"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A YAML file, or a name from `kasatune list recipes`.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SECTION.KEY=VALUE",
        help="Changes to the recipe, for example training.seed=1 method.r=16.",
        show_default=False,
    ),
]
RunDirectory = Annotated[
    Path, typer.Argument(metavar="RUN_DIR", help="A run directory written by `kasatune train`.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print only JSON on standard output.")]
AdapterDirectory = Annotated[
    Path,
    typer.Argument(metavar="RUN_OR_ADAPTER_DIR", help="A run directory or an adapter directory.", show_default=False),
]
NewDirectory = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="A new or empty directory.", show_default=False)
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="MODEL", help="The base model: hub id, folder, GGUF file or package:NAME.", show_default=False
    ),
]
MixturePart = Annotated[
    str | None,
    typer.Option("--part", metavar="NAME", help="One part of a run on a mixture of tasks.", show_default=False),
]
MovedBase = Annotated[
    str | None,
    typer.Option(
        "--base",
        metavar="MODEL",
        help="Where the base model is now, if not where the recipe says: hub id, folder, GGUF file or package:NAME.",
        show_default=False,
    ),
]

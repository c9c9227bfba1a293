from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kasatune.cli.arguments import MovedBase, Overrides, RecipeFile
from kasatune.cli.console import results_only
from kasatune.cli.fast_import import large_libraries
from kasatune.cli.live_report import LiveReport
from kasatune.cli.progress_bar import make_progress
from kasatune.errors import InputError
from kasatune.recipes.catalogue import find_recipe

if TYPE_CHECKING:
    from kasatune.recipes.schema import Recipe


def command(
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run directory; default: the recipe's `output`.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the directory.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the directory.")] = False,
    base: MovedBase = None,
) -> None:
    """Fine-tune a model as a recipe describes and write a run directory.

    Example: kasatune train glue-minilm/rte task.data=path/to/RTE training.seed=1 --out runs/rte-seed1

    A recipe is a YAML file. The minimum:

    ```yaml
    model: {name: path/to/model}
    task: {name: classification, train: a.csv, validation: b.csv, text: sentence, label: class}
    ```

    `kasatune plan RECIPE` shows what a run will cost.
    """
    from kasatune.cli.run_summary import show_run, write_pages
    from kasatune.recipes.schema import load_recipe

    if base is not None and not resume:
        raise InputError("--base MODEL is for --resume, when the base has moved; otherwise set model.name=MODEL")
    checked = load_recipe(find_recipe(recipe), overrides or (), check_inputs=base is None)
    if out is not None:
        checked = checked.model_copy(update={"output": str(out)})
    directory = Path(checked.output)
    first = os.environ.get("RANK", "0") == "0"  # of the processes started by torchrun, one writes and prints
    with results_only():
        _train(checked, directory, resume=resume, overwrite=overwrite, base=base)
        if first:
            write_pages(directory)
    if first:
        show_run(directory)


def _train(recipe: Recipe, directory: Path, *, resume: bool, overwrite: bool, base: str | None) -> None:
    with large_libraries():
        from kasatune.training.train import train

    try:
        display = LiveReport(make_progress(), directory)
        train(recipe, directory, resume=resume, overwrite=overwrite, base=base, display=display)
    except KeyboardInterrupt as interrupt:
        resume_hint = f"{directory} holds the progress so far; continue with the same command and --resume"
        interrupt.add_note(resume_hint if directory.is_dir() and any(directory.iterdir()) else "nothing was written")
        raise

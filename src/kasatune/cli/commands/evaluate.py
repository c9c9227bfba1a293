from __future__ import annotations

from typing import Annotated

import typer

from kasatune.cli.arguments import Json, RunDirectory
from kasatune.cli.console import print_json, results_only


def command(
    run_dir: RunDirectory,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="The rows to score; those of metrics.json by default.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where the rows lie now; the recipe's own place by default.")
    ] = None,
    json: Json = False,
) -> None:
    """Score a run again, from its saved files alone.

    Example: kasatune evaluate runs/rte-kasa --split validation
    """
    from kasatune.cli.display import make_display
    from kasatune.cli.outcome import show_scores
    from kasatune.runs.directory import read_metrics, read_recipe

    read_recipe(run_dir)
    read_metrics(run_dir)
    with results_only():
        from kasatune.runs.evaluate import evaluate
        from kasatune.tuner.progress import progress_told_to

        display = make_display()
        with progress_told_to(display.progress):
            metrics = evaluate(run_dir, split=split, data=data)
        display.finish()
    if json:
        print_json(metrics)
    else:
        show_scores(metrics)

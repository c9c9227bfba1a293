from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kasatune.cli.arguments import Json, NewDirectory, Overrides
from kasatune.cli.console import print_json, print_table, results_only, say
from kasatune.cli.fast_import import large_libraries
from kasatune.cli.progress_bar import make_progress
from kasatune.io.run_layout import REPORT


def command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.", show_default=False)],
    out: NewDirectory,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the directory.")] = False,
    json: Json = False,
) -> None:
    """Teach a model to answer questions from your documents: SimRAG, self-training in two stages (arXiv 2410.17952).

    Example: kasatune simrag docs.yaml --out runs/docs

    Stage I trains on instructions, context questions and two retrieval skills. Stage II trains on questions that the
    model of stage I writes for your documents, kept where retrieval finds the answer. Base and both stages answer the
    same questions, with and without passages.

    The minimum of a recipe:

    ```yaml
    model: {name: path/to/model}
    corpus: {documents: docs/}
    stage_one: {instructions: alpaca.json, context_qa: squad.jsonl}
    evaluation: {questions: questions.jsonl, count: 300}
    ```

    `DIR/stage-2` is a run: `kasatune predict` and `kasatune chat` answer with it and show the passages.
    """
    from kasatune.cli.run_summary import write_pages
    from kasatune.simrag.recipe import STAGE_ONE, STAGE_TWO, load_simrag

    checked = load_simrag(recipe, overrides or ())
    with results_only():
        with large_libraries():
            from kasatune.simrag.pipeline import simrag
            from kasatune.simrag.report import conclusion, kept_sentence, score_tables

        try:
            result = simrag(checked, out, resume=resume, display=make_progress())
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"{out} holds the progress so far; continue with the same command and --resume")
            raise
        for stage in (STAGE_ONE, STAGE_TWO):
            write_pages(out / stage)
    if json:
        print_json(result)
        return
    for table in score_tables(result):
        print_table(table["head"], table["rows"], title=table["caption"], numbers=len(table["head"]) - 1)
    say(kept_sentence(result))
    say(conclusion(result))
    say(f"report: {out / REPORT}")

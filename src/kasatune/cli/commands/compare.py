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
    from kasatune.recipes.schema import Recipe


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
    search_seeds: Annotated[
        int, typer.Option(metavar="N", help="Seeds of every search trial; their mean score counts.")
    ] = 3,
    search_extensions: Annotated[
        int, typer.Option(metavar="N", help="Most trials beyond an edge of the rates at which the best one lies.")
    ] = 3,
    margin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=VALUE", help="Largest difference in a score that does not matter.", show_default=False
        ),
    ] = None,
    primary: Annotated[
        str | None,
        typer.Option(
            metavar="TASK:METRIC:METHOD:REFERENCE[:MARGIN]",
            help="The one difference that is tested alone; all others are exploratory.",
            show_default=False,
        ),
    ] = None,
    register: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the plan of the comparison and run nothing.", show_default=False),
    ] = None,
    registered: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The plan that was committed before the first run.", show_default=False),
    ] = None,
    pilot: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --plan: an earlier comparison to plan from.", show_default=False),
    ] = None,
    unrelated: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Text to measure forgetting on; default: documentation strings of Python's standard library.",
            show_default=False,
        ),
    ] = None,
    unrelated_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens of that text to measure on.")] = 20_000,
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
        bool,
        typer.Option(
            "--plan",
            help="Print the number of runs, their time and the smallest difference they can show; run nothing.",
        ),
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Write the report from the finished runs only.")
    ] = False,
    json: Json = False,
) -> None:
    """Train several methods under equal budgets and decide which are better, worse or equivalent.

    Example: kasatune compare glue-minilm/sst2 task.data=path/to/SST-2 --methods kasa,lora,bitfit,full --seeds 0,1,2,3,4

    Every method searches its learning rate (and KaSA beta and gamma) on a part of the training rows, then trains on all
    of them with each seed. To continue after an interruption, give the same command
    again: finished runs are not repeated. The linear probe (a head fitted on the frozen model) is always included.
    """
    with results_only():
        low, high = _bounds(learning_rates)
        spec = _spec(
            _recipes(recipe, tasks, overrides),
            methods,
            seeds,
            reference=reference,
            protocol=protocol,
            search=(search, trials, low, high, search_seeds, search_extensions),
            margins=margin or (),
            primary=primary,
            unrelated=(unrelated, unrelated_tokens),
        )
        number = _workers(workers)
        if threads < 1:
            raise InputError(f"--threads: {threads} received; must be 1 or more")
        arguments = [argument for argument in sys.argv[1:] if argument not in ("--report-only", "--json")]
        command_line = f"kasatune {redacted(shlex.join(arguments))}" if "compare" in arguments else ""
        if pilot is not None and not plan:
            raise InputError(f"--pilot: {pilot} received; it is read with --plan only")
        if register is not None:
            results: dict[str, Any] = _register(spec, register)
        elif plan:
            results = _plan(spec, out, threads, number, pilot)
        else:
            options = {"workers": number, "threads": threads, "gpus": gpus_per_run, "keep_adapters": keep_adapters}
            results = _compare(spec, out, command_line, options, registered, report_only)
    if json:
        print_json(results)
    elif register is not None:
        say(f"{register} holds the plan; commit it, then give the same command with --registered {register}")
    elif plan:
        _show_plan(results)
    else:
        _show(results, out)


def _recipes(recipe: str, tasks: str | None, overrides: list[str] | None) -> list[tuple[Path, Recipe]]:
    from kasatune.recipes.schema import load_recipe

    paths = [find_recipe(name.strip()) for name in [recipe, *(tasks or "").split(",")] if name.strip()]
    own = _overrides(overrides or (), [path.stem for path in paths])
    return [(path, load_recipe(path, own[path.stem], check_inputs=True)) for path in paths]


def _spec(
    recipes: list[tuple[Path, Recipe]],
    methods: str,
    seeds: str,
    *,
    search: tuple[Any, ...],
    unrelated: tuple[str | None, int],
    **options: Any,
) -> ComparisonSpec:
    from kasatune.evaluation.unrelated_text import UnrelatedText
    from kasatune.experiments.compare.spec import Search, make_spec
    from kasatune.experiments.compare.variants import parse_seeds, parse_variants

    return make_spec(
        recipes,
        parse_variants(methods),
        parse_seeds(seeds),
        search=Search(*search),
        unrelated=UnrelatedText(*unrelated),
        **options,
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


def _plan(spec: ComparisonSpec, out: Path, threads: int, workers: int | str, pilot: Path | None) -> dict[str, Any]:
    from kasatune.experiments.compare.runtime_forecast import forecast

    return forecast(spec, out, threads=threads, workers=workers, pilot=pilot)


def _register(spec: ComparisonSpec, path: Path) -> dict[str, Any]:
    from kasatune.experiments.compare.compare import plan_methods
    from kasatune.experiments.compare.process_cache import process_cache
    from kasatune.experiments.compare.registration import planned_content, write_plan
    from kasatune.io.library_noise import quiet

    with quiet(note):
        methods = plan_methods(spec, process_cache(), note)
    write_plan(spec, methods, path)
    return planned_content(spec, methods)


def _compare(
    spec: ComparisonSpec,
    out: Path,
    command_line: str,
    options: dict[str, Any],
    registered: Path | None,
    report_only: bool,
) -> dict[str, Any]:
    from kasatune.experiments.compare.compare import collect_finished, compare
    from kasatune.experiments.compare.comparison_file import write_comparison

    if report_only:
        comparison = collect_finished(
            spec, out, threads=options["threads"], command=command_line, registered=registered
        )
    else:
        try:
            comparison = compare(
                spec,
                out,
                **options,
                tell=note,
                command=command_line,
                registered=registered,
                interim=lambda content: write_comparison(content, out, running=True),
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
    _show_smallest(plan["smallest_differences"])


def _show_smallest(lines: list[dict[str, Any]]) -> None:
    """Print the smallest differences that the seeds can show, and warn where they exceed the margin."""
    from kasatune.reports import formatting

    if lines[0]["unit"] == "sd":
        smallest = lines[0]["smallest"]
        if smallest is None:
            say("\none seed shows no difference: give --seeds at least two")
            return
        say(
            f"\nat 80 % power these seeds show a difference of {smallest:.2f} standard deviations of the paired "
            "difference; give --pilot DIR, an earlier comparison, to see it in units of the score"
        )
        return
    head = ["task", "method", "score", "smallest difference", "margin", ""]
    rows = [
        [
            line["task"],
            line["method"],
            formatting.metric_title(line["metric"]),
            formatting.score(line["smallest"]),
            formatting.ABSENT if line["margin"] is None else f"{line['margin']:g}",
            "above the margin" if line["exceeds_margin"] else "",
        ]
        for line in lines
    ]
    print_table(head, rows, title="Smallest difference that these seeds show at 80 % power, tested alone", numbers=3)
    above = sum(bool(line["exceeds_margin"]) for line in lines)
    if above:
        say(f"\nwarning: {above} of {len(lines)} smallest differences exceed the margin; give more seeds or rows")


def _show(comparison: dict[str, Any], out: Path) -> None:
    from kasatune.reports.comparison.comparison_tables import task_table
    from kasatune.reports.comparison.conclusion import begun

    for task in begun(comparison):
        table = task_table(comparison, task)
        print_table(table.head, table.rows, title=f"{task['name']}: {table.caption}", numbers=len(table.head) - 1)
        say()
    say(comparison["answer"])
    say(f"\nreport: {out / REPORT}")

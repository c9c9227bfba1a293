from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kasatune.cli import judge_options as judging
from kasatune.cli.arguments import Json, Overrides
from kasatune.cli.console import note, print_json, print_table, results_only, say
from kasatune.errors import WorkError
from kasatune.recipes.catalogue import find_recipe


def command(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="glue, e2e, instruct, commonsense or ablation.", show_default=False)
    ],
    overrides: Overrides = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="M", help="A base model of the table, or another model to use instead.", show_default=False
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Scaled down: a small model, fewer rows, fewer epochs.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Directory of the runs and results; default: runs/reproduce-NAME."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Directory with the data of the tasks; default: download from the hub.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="LIST", help="Only these tasks of the table.", show_default=False)
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Methods, as in `compare`; default: those of the table.", show_default=False),
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="LIST", help="Seeds of the runs.")] = "0",
    judge: judging.Judge = None,
    judge_url: judging.JudgeUrl = None,
    questions: judging.Questions = None,
    judge_prompts: judging.JudgePrompts = None,
    judge_rate: judging.JudgeRate = None,
    judge_workers: judging.JudgeWorkers = 1,
    judge_prices: judging.JudgePrices = None,
    json: Json = False,
) -> None:
    """Reproduce a table of the paper, and compare our numbers with the paper's.

    Example: kasatune reproduce glue --quick --data path/to/GLUE

    Trains the runs that DIR does not hold yet, with the built-in recipes; to continue after an interruption, give the
    same command again. Writes reproduction.md and reproduction.json, which give for every number where it was
    published, the value in the authors' log, our value, and whether the two differ.

    For `instruct`, the model of --judge grades the answers, and with --questions those to MT-Bench's questions too;
    without a judge the runs are trained and generate answers, and the grades are missing.
    """
    from kasatune.experiments.compare.variants import parse_seeds
    from kasatune.experiments.reproduce.judge_scores import Judging
    from kasatune.experiments.reproduce.published.catalogue import find_experiment
    from kasatune.experiments.reproduce.spec import make_request
    from kasatune.llm_client import Endpoint

    experiment = find_experiment(name)
    if judge is None:
        judging.refuse_without_judge(
            judge_url=judge_url, judge_prompts=judge_prompts, judge_rate=judge_rate, judge_prices=judge_prices
        )
    endpoint = Endpoint(judge, judge_url, judge_rate, judge_workers) if judge is not None else None
    directory = out or Path(f"runs/reproduce-{name}{'-quick' if quick else ''}")
    request = make_request(
        experiment,
        directory,
        find_recipe,
        model=model,
        quick=quick,
        methods=methods,
        seeds=parse_seeds(seeds),
        tasks=[task.strip() for task in (tasks or "").split(",") if task.strip()],
        data=data,
        overrides=overrides or (),
        judging=Judging(endpoint, questions, judge_prompts, judging.make_prices(judge_prices)),
    )
    with results_only():
        results = _reproduce(request, directory)
    if json:
        print_json(results)
    else:
        _show(results, directory)
    if results["failed"]:
        raise WorkError("some runs did not finish; continue with the same command")


def _reproduce(request: Any, directory: Path) -> dict[str, Any]:
    from kasatune.cli.progress_bar import make_progress
    from kasatune.cli.run_summary import write_pages
    from kasatune.experiments.reproduce.reproduce import reproduce
    from kasatune.experiments.reproduce.reproduction_file import write_reproduction

    arguments = [argument for argument in sys.argv[1:] if argument != "--json"]
    command_line = f"kasatune {shlex.join(arguments)}" if "reproduce" in arguments else ""
    try:
        results = reproduce(
            request,
            directory,
            display=make_progress(),
            tell=note,
            after=write_pages,
            judging=judging.teller(),
            command=command_line,
        )
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"{directory} holds the progress so far; continue with the same command")
        raise
    write_reproduction(results, directory)
    return results


def _show(results: dict[str, Any], directory: Path) -> None:
    from kasatune.experiments.reproduce.reproduction_file import PAGE
    from kasatune.reports.reproduction import HEAD, conclusion, rows

    print_table(HEAD, rows(results), title=f"{results['title']}, {results['model_title']}")
    say(f"\n{conclusion(results)}")
    say(f"page: {directory / PAGE}")

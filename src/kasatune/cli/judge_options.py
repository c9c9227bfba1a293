"""The `--judge` options of `kasatune evaluate` and `kasatune reproduce`, and the printed grades."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kasatune.cli.console import note, print_json, print_table, results_only, say
from kasatune.errors import InputError
from kasatune.wording import counted

if TYPE_CHECKING:
    from kasatune.llm_client import Prices

Judge = Annotated[
    str | None,
    typer.Option(
        "--judge", metavar="MODEL", help="Grade the answers with this model, behind an OpenAI-compatible API."
    ),
]
JudgeUrl = Annotated[
    str | None,
    typer.Option("--judge-url", metavar="URL", help="URL of the judge's server; the key is read from OPENAI_API_KEY."),
]
Questions = Annotated[
    Path | None,
    typer.Option("--questions", metavar="FILE", help="Questions in MT-Bench's form: two turns, graded from 1 to 10."),
]
JudgePrompts = Annotated[
    Path | None, typer.Option("--judge-prompts", metavar="FILE", help="Judge prompts in MT-Bench's form.")
]
Against = Annotated[
    Path | None,
    typer.Option(
        "--against", metavar="RUN_OR_FILE", help="Compare pairwise with the answers of another run, in both orders."
    ),
]
JudgeRate = Annotated[
    float | None, typer.Option("--judge-rate", metavar="N", min=0.01, help="Maximum requests per minute.")
]
JudgeWorkers = Annotated[int, typer.Option("--judge-workers", metavar="N", min=1, max=256, help="Concurrent requests.")]
JudgePrices = Annotated[
    str | None,
    typer.Option("--judge-prices", metavar="IN,OUT", help="Prices per million prompt and completion tokens."),
]


def refuse_without_judge(**options: object) -> None:
    """Refuse the options of a judge where --judge is not given.

    Raises:
        InputError: one of them is given.
    """
    lone = [name for name, value in options.items() if value is not None]
    if lone:
        raise InputError(f"--{lone[0].replace('_', '-')} needs a judge: give --judge MODEL too")


def make_prices(text: str | None) -> Prices | None:
    """Parse prices such as "2.5,10".

    Raises:
        InputError: `text` is not two numbers of at least 0.
    """
    if text is None:
        return None
    from kasatune.llm_client import Prices

    try:
        sent, received = (float(part) for part in text.split(","))
    except ValueError:
        sent = received = -1.0
    if not (sent >= 0 and received >= 0):
        raise InputError(f"--judge-prices: {text!r} received; give two numbers with a comma, such as 2.5,10")
    return Prices(sent, received)


def judge(
    run_dir: Path,
    model: str,
    *,
    url: str | None,
    questions: Path | None,
    prompts: Path | None,
    against: Path | None,
    rate: float | None,
    workers: int,
    prices: str | None,
    split: str | None,
    base: str | None,
    json: bool,
) -> None:
    """Grade the run with the judge `model` and print the result."""
    sums = make_prices(prices)
    with results_only():
        from kasatune.evaluation.judge.judge_run import JudgeSettings, judge_run
        from kasatune.llm_client import Endpoint

        settings = JudgeSettings(Endpoint(model, url, rate, workers), questions, prompts, against, sums, split, base)
        try:
            judged = judge_run(run_dir, settings, teller())
        except KeyboardInterrupt as interrupt:
            interrupt.add_note("every answer and reply is kept; give the same command to continue")
            raise
    if json:
        print_json(judged)
    else:
        _show(judged)


def teller() -> Callable[[str, int, int], None]:
    """A progress listener that prints a line to standard error at every tenth of the work."""
    shown: dict[str, int] = {}

    def tell(what: str, done: int, total: int) -> None:
        if done == total or done >= shown.get(what, 0) + max(1, total // 10):
            shown[what] = 0 if done == total else done
            note(f"{what}: {done:,} of {total:,}")

    return tell


def _show(judged: Mapping[str, Any]) -> None:
    result = judged["judge"]
    title = f"{result['protocol']}, judged by {result['model']}"
    rows = [[name, f"{value:.4f}"] for name, value in judged["metrics"].items()]
    if result["protocol"] == "pairs":
        rows += [[name, f"{result[name]}"] for name in ("wins", "losses", "ties", "swayed")]
    elif result["interval"]:
        low, high = result["interval"]
        rows.append(["95 % interval", f"{low:.4f} to {high:.4f}"])
    rows += [[name, f"{value:.4f}"] for name, value in result.get("by_category", {}).items()]
    print_table([title, "score"], rows, numbers=1)
    say(f"\ncounted: {result['graded']}, not counted: {result['failed']}")
    for failure in result["failures"][:5]:
        say(f"not counted: question {failure['question_id']}, turn {failure['turn']}: {failure['reason']}")
    cost = result["cost"]
    money = "" if cost["money"] is None else f", {cost['money']:.4f} at the given prices"
    uncounted = f" ({counted(cost['uncounted'], 'reply')} not counted by the server)" if cost["uncounted"] else ""
    say(
        f"asked now: {result['asked_now']}; cost of all {counted(cost['answers'], 'reply')}: "
        f"{cost['prompt_tokens']:,} prompt and"
        f" {counted(cost['completion_tokens'], 'completion token')}{uncounted}{money}"
    )

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kasatune.cli.arguments import Json, NewDirectory, Overrides
from kasatune.cli.console import note, print_json, say
from kasatune.wording import counted


def command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.", show_default=False)],
    out: NewDirectory,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the synthesis in the directory.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier synthesis in the directory.")
    ] = False,
    json: Json = False,
) -> None:
    """Generate instruction data with a teacher model behind an OpenAI-compatible API.

    Example: kasatune synthesize closed_qa.yaml data.count=1000 --out data/closed_qa

    The minimum of a recipe:

    ```yaml
    teacher: {model: gpt-4o}
    seeds: {file: seeds.jsonl}
    data: {subject: closed_qa, count: 100}
    ```

    The key is read from OPENAI_API_KEY; `teacher.url` names your own server. Replies are cached; no request is sent
    twice.
    """
    from kasatune.synthesis.recipe import load_synthesis
    from kasatune.synthesis.synthesize import ROWS, synthesize

    checked = load_synthesis(recipe, overrides or (), check_inputs=True)
    try:
        report = synthesize(checked, out, resume=resume, overwrite=overwrite, progress=_tell())
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"{out} holds every reply; continue with the same command and --resume")
        raise
    if json:
        print_json(report)
        return
    short = "" if report["rows"] >= report["wanted"] else f" of {report['wanted']:,} wanted"
    requests = f"{counted(report['requests'], 'request')} ({report['asked']:,} now)"
    say(f"{counted(report['rows'], 'row')}{short} in {out / ROWS}, from {requests}")
    for reason, number in report["left_out"].items():
        say(f"left out: {number:,} {reason}")
    say(_cost(report["cost"]))


def _tell() -> Any:
    shown = 0

    def tell(done: int, total: int) -> None:
        nonlocal shown
        if done == total or done >= shown + max(1, total // 20):
            shown = done
            note(f"{done:,} of {counted(total, 'row')}")

    return tell


def _cost(cost: dict[str, Any]) -> str:
    parts = [
        f"{counted(cost['prompt_tokens'], 'prompt token')}",
        f"{counted(cost['completion_tokens'], 'completion token')}",
    ]
    if cost["uncounted"]:
        parts.append(f"{counted(cost['uncounted'], 'reply')} not counted by the server")
    if cost["money"] is not None:
        parts.append(f"{cost['money']:.4f} at the given prices")
    return f"cost: {', '.join(parts)}"

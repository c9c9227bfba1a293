from __future__ import annotations

import typer

from kasatune.cli.arguments import AdapterDirectory, BaseModel, Json
from kasatune.cli.console import print_json, print_table, results_only

_WORDS = {True: "pass", False: "FAIL", None: "-"}


def command(directory: AdapterDirectory, base: BaseModel = None, json: Json = False) -> None:
    """Verify a run, an adapter or a comparison: files, hashes, base, scores, exports; exit status 1 if a check fails.

    Example: kasatune verify runs/rte-kasa
    """
    with results_only():
        from kasatune.adapter_tools.verify import verify

        checks = verify(directory, base)
    if json:
        print_json([check._asdict() for check in checks])
    else:
        print_table(["check", "", "figure"], [[c.name, _WORDS[c.passed], c.figure] for c in checks])
    if any(check.passed is False for check in checks):
        raise typer.Exit(1)

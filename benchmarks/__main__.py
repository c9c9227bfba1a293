"""Run every benchmark in its quick form and write one table of all of them.

python -m benchmarks

The table is docs/results/benchmarks/bench.md. Exit status 1 if a benchmark failed; a missed target is marked in the
table and does not change the exit status.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.harness import MEANING, RESULTS, Row, machine

SCRIPTS = (
    "decomposition",
    "decomposition_memory",
    "tails",
    "attach",
    "load",
    "step",
    "data_loading",
    "whole_run",
    "scaling",
)
LONGEST, ALL = 300.0, 900.0
"""Seconds that one script may take, and all of them together."""
HEAD = ("what", "ours", "peer", "ratio", "target", "")


@dataclass(frozen=True)
class Result:
    """What came of one script: its rows, or why there are none."""

    script: str
    rows: tuple[Row, ...]
    seconds: float
    fault: str = ""


def run(script: str, longest: float = LONGEST) -> Result:
    record = RESULTS / f"{script}-quick.json"
    record.unlink(missing_ok=True)
    start = time.perf_counter()
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", f"benchmarks.{script}", "--quick"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=longest, check=False, env=environment)
        fault = "" if done.returncode == 0 else f"exit status {done.returncode}: {_last_line(done.stderr)}"
    except subprocess.TimeoutExpired:
        fault = f"not done after {longest:.0f} s"
    seconds = time.perf_counter() - start
    if not fault and not record.is_file():
        fault = f"wrote no {record.name}"
    if fault:
        return Result(script, (), seconds, fault)
    rows = json.loads(record.read_text(encoding="utf-8"))["rows"]
    return Result(script, tuple(Row(**row) for row in rows), seconds)


def cells(result: Result) -> list[tuple[str, ...]]:
    if result.fault:
        return [(f"{result.script}: FAILED, {result.fault}", "", "", "", "", "FAILED")]
    return [
        (
            f"{result.script}: {row.what}",
            row.ours,
            row.peer,
            row.shown_ratio,
            "" if row.target is None else f"{row.target:.3g}",
            row.verdict,
        )
        for row in result.rows
    ]


def plain(table: list[tuple[str, ...]]) -> str:
    lines = [HEAD, *table]
    widths = [max(len(line[place]) for line in lines) for place in range(len(HEAD))]
    return "\n".join(
        "  ".join(c.ljust(width) for c, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def page(results: list[Result], table: list[tuple[str, ...]]) -> str:
    facts = machine()
    met = sum(row.verdict == "met" for result in results for row in result.rows)
    missed = sum(row.verdict == "MISSED" for result in results for row in result.rows)
    lines = [
        "# Every benchmark, in its quick form",
        "",
        f"{datetime.now(UTC).date().isoformat()}, {facts['processor']}, {facts['threads']} threads; "
        + ", ".join(f"{key} {facts[key]}" for key in ("python", "torch", "transformers", "peft", "kasatune"))
        + ".",
        "",
        f"Made by `make bench` in {sum(result.seconds for result in results) / 60:.0f} minutes. {MEANING} For "
        "scaling it is the growth measured over what arithmetic alone gives. Quick forms take small shapes and few "
        f"turns; the pages beside this one hold the full ones. {met} targets met, {missed} missed.",
        "",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in [HEAD]),
        "|---" * len(HEAD) + "|",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in table),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    results = []
    for script in SCRIPTS:
        print(f"{script} ...", file=sys.stderr, flush=True)
        left = ALL - sum(result.seconds for result in results)
        results.append(run(script, min(LONGEST, left)) if left > 0 else Result(script, (), 0.0, "no time was left"))
        print(f"{script}: {results[-1].fault or 'done'} after {results[-1].seconds:.0f} s", file=sys.stderr, flush=True)
    table = [line for result in results for line in cells(result)]
    print(plain(table))
    RESULTS.mkdir(exist_ok=True)
    unfinished = Path(f"{RESULTS / 'bench.md'}.unfinished")
    unfinished.write_text(page(results, table), encoding="utf-8")
    unfinished.replace(RESULTS / "bench.md")
    return int(any(result.fault for result in results))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "nothing was said"


if __name__ == "__main__":
    sys.exit(main())

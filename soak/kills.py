"""Kill commands with SIGKILL at random moments, resume them, and compare the results with those of undisturbed runs.

python -m soak.kills [--kills 24] [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from soak.cases import Case, difference, left_behind, make_cases
from soak.child import finish, start
from soak.record import write

_MOST = 4
"""The most kills of one result before it may finish."""
_ENOUGH = 5
"""The number of losses after which the command is abandoned."""


@dataclass
class Tally:
    """The outcome of one case.

    Attributes:
        kills: the number of processes killed.
        results: the number of results that were completed after kills.
        checkpoints: the number of checkpoints compared with those of the undisturbed run.
        lost: one line per result that differed or failed, and per file left behind.
        seconds: the duration of the undisturbed run.
    """

    kills: int = 0
    results: int = 0
    checkpoints: int = 0
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0


def try_case(case: Case, folder: Path, kills: int, draw: random.Random) -> Tally:
    """Kill a command at least `kills` times, at moments drawn evenly over its length, and compare every result."""
    folder.mkdir(parents=True)
    tally = Tally()
    reference, steps = folder / "reference", _folder(folder / "reference-steps")
    began = time.perf_counter()
    if status := finish(start(case.begin(reference), folder / "log", checksums=steps, save_seconds=0.0)):
        raise RuntimeError(f"{case.name}: exit status {status} without a kill; see {folder / 'log'}")
    tally.seconds = time.perf_counter() - began
    wanted = case.result(reference)
    while tally.kills < kills and len(tally.lost) < _ENOUGH:
        out, own = folder / f"run{tally.results}", _folder(folder / f"run{tally.results}-steps")
        options = {"checksums": own, "save_seconds": 0.1 * tally.seconds}
        arguments: Sequence[str] | None = case.begin(out)
        for _ in range(draw.randint(1, _MOST)):
            process = start(arguments, folder / "log", **options)  # pyright: ignore[reportArgumentType]
            process.join(draw.uniform(0.0, tally.seconds))
            process.kill()
            process.join()
            if process.exitcode == -signal.SIGKILL:
                tally.kills += 1
            elif process.exitcode:
                tally.lost.append(f"{out.name}: exit status {process.exitcode}")
            arguments = case.again(out) if process.exitcode else None
            if arguments is None:
                break
        if arguments is not None:
            status = finish(start(arguments, folder / "log", **options))  # pyright: ignore[reportArgumentType]
            if status:
                tally.lost.append(f"{out.name}: exit status {status}")
        tally.results += 1
        _compare(case, out, wanted, tally)
        if case.checkpoints:
            tally.checkpoints += _compare_steps(out.name, own, steps, tally)
        if not tally.lost:
            shutil.rmtree(out)
    return tally


def main(argv: Sequence[str] | None = None) -> int:
    """Try every case and write the record; return exit status 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=24, help="kills of each command, over all its forms")
    parser.add_argument("--quick", action="store_true", help="three kills of each case, without writing the record")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the cases whose name contains TEXT")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    os.environ.setdefault("KASATUNE_CACHE", "off")
    began = time.perf_counter()
    draw = random.Random(given.seed)
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory(prefix="kasatune-soak-") as folder:
        place = Path(folder)

        def run(arguments: Sequence[str]) -> None:
            if status := finish(start(arguments, place / "log")):
                raise RuntimeError(f"{' '.join(arguments)}: exit status {status}")

        cases = make_cases(place, run)
        of_command = Counter(case.command for case in cases)
        for case in cases:
            if given.only not in case.name:
                continue
            kills = 3 if given.quick else math.ceil(given.kills / of_command[case.command])
            tallies[case.name] = tally = try_case(case, place / case.name.replace(" ", "-"), kills, draw)
            summary = f"{tally.kills} kills, {tally.results} results, lost: {tally.lost or 'nothing'}"
            print(f"{case.name}: {summary}", flush=True)
            _record(
                given, tallies, time.perf_counter() - began
            )  # after every case, so that an interrupted soak keeps its record
    return int(any(tally.lost for tally in tallies.values()))


def _record(given: argparse.Namespace, tallies: Mapping[str, Tally], seconds: float) -> None:
    write(
        part="kills",
        title="Killed at any moment",
        order=10,
        command=f"python -m soak.kills --kills {given.kills} --seed {given.seed}",
        text=(
            "Each command is killed with SIGKILL at moments drawn evenly over the length of a complete run, up "
            f"to {_MOST} times before it may finish, and started again (`--resume` for `train` and `decompose`, "
            "the same command for the others; if `export` or `merge` is killed after its result has appeared, "
            "that is the result). The result is compared with that of a run that was never killed: every file "
            "byte for byte, except that JSON is compared without times, dates, sizes and the command, a CSV "
            "table by its number of rows, a recipe without its output, and that the pages made from these "
            "(report, README, the tables of a comparison) are left out. For `train` also every checkpoint that "
            "both wrote at the same step: weights, optimizer, schedule and random state by SHA-256. A result "
            "that differs, fails, or leaves a temporary file behind counts as lost. Models and data are toys, "
            "on the CPU, in float32, with dropout 0.1."
        ),
        columns=["command", "one run", "processes killed", "results compared", "checkpoints compared", "lost"],
        rows=[
            [name, f"{t.seconds:.1f} s", t.kills, t.results, t.checkpoints or "", len(t.lost)]
            for name, t in tallies.items()
        ],
        totals={
            "processes killed": sum(tally.kills for tally in tallies.values()),
            "lost": sum(len(tally.lost) for tally in tallies.values()),
        },
        findings=[
            "The only checkpoint was removed before the next one was complete: two are kept, each with checksums.",
            "A kill of `export` or `merge` left its unfinished directory behind: the next such command removes it.",
            "The first evaluation of a process drew from Python's random numbers, so that a resumed run had others "
            "than an undisturbed one. No weight depended on them; evaluations draw none now.",
            "A kill within a long epoch lost the epoch: a checkpoint is now also written every ten minutes.",
            "A `train` or `decompose` killed while it wrote its first file could not be resumed, an unfinished page "
            "left a temporary file, and a run killed at its last moment left its lock: all fixed.",
        ],
        seconds=seconds,
        quick=given.quick or bool(given.only),
    )


def _compare(case: Case, out: Path, wanted: dict, tally: Tally) -> None:
    result = case.result(out) if out.exists() else {}
    for name in sorted(wanted.keys() | result.keys()):
        if wanted.get(name) != result.get(name):
            tally.lost.append(f"{out.name}/{name}/{difference(result.get(name), wanted.get(name))}")
    tally.lost += [f"{path} was left behind" for path in left_behind(out) if not path.endswith("-steps")]


def _compare_steps(name: str, own: Path, reference: Path, tally: Tally) -> int:
    compared = 0
    for path in sorted(own.glob("[!.]*.json")):
        resumed, wanted = (json.loads((steps / path.name).read_text(encoding="utf-8")) for steps in (own, reference))
        for file in ("model", "method", "optimizer", "random-0"):
            if resumed.get(f"{file}.safetensors") != wanted.get(f"{file}.safetensors"):
                tally.lost.append(f"{name}: {file} of {path.stem} differs")
        if resumed.get("schedule.json") != wanted.get("schedule.json"):
            tally.lost.append(f"{name}: schedule of {path.stem} differs")
        compared += 1
    return compared


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


if __name__ == "__main__":
    raise SystemExit(main())

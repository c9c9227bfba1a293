"""Commands on toy models into which faults are injected, with the reference result of each without a fault."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from soak.cases import Case, difference, left_behind, make_cases
from soak.child import finish, start

COMMANDS = ("train, kasa", "compare", "decompose", "export --to lora", "merge")


@dataclass
class Fault:
    """The outcome of one kind of fault.

    Attributes:
        name: its name on the page.
        exit_statuses: the exit statuses of the commands with the fault.
        injected: the number of injections.
        compared: the number of results compared with those without a fault.
        lost: one line per result that differed and per unexpected exit status.
        skipped: the reason why it could not be injected on this machine; empty if it was.
    """

    name: str
    exit_statuses: set[int] = field(default_factory=set)
    injected: int = 0
    compared: int = 0
    lost: list[str] = field(default_factory=list)
    skipped: str = ""


class Bench:
    """Commands on toy models, run once without a fault for the reference results.

    Args:
        folder: the working directory; other files in it are not touched.
        draw: the source of random moments and places.
        cases: the available commands, of which those in `COMMANDS` are used; None makes them, with models and data
            in `folder`.
    """

    def __init__(self, folder: Path, draw: random.Random, cases: Mapping[str, Case] | None = None) -> None:
        self.folder, self.draw = folder, draw
        available = {case.name: case for case in make_cases(folder, self._run_checked)} if cases is None else cases
        self.cases = {name: available[name] for name in COMMANDS if name in available}
        self.reference, self.seconds = {}, {}
        for name, case in self.cases.items():
            began = time.perf_counter()
            out = folder / "reference" / name.replace(" ", "-")
            self._run_checked(case.begin(out))
            self.reference[name] = case.result(out)
            self.seconds[name] = time.perf_counter() - began
        self._number = 0

    @property
    def train(self) -> Case:
        """The command whose process is stopped or whose files are damaged."""
        return self.cases[COMMANDS[0]]

    def new(self) -> Path:
        """Return a path that does not exist yet."""
        self._number += 1
        return self.folder / f"out{self._number}"

    def run(self, arguments: Sequence[str], log: Path | None = None, **options: object) -> int:
        """Run a command to its end and return its exit status."""
        return finish(start(arguments, log or self.folder / "log", **options))  # pyright: ignore[reportArgumentType]

    def repeat(self, fault: Fault, case: Case, out: Path) -> None:
        """Repeat a command after the fault is removed, and compare its result with the reference."""
        arguments = case.again(out)
        self.compare(fault, case, out, self.run(arguments) if arguments is not None else 0)

    def compare(self, fault: Fault, case: Case, out: Path, status: int) -> None:
        """Compare the final result of a command with the reference."""
        fault.compared += 1
        if status:
            fault.lost.append(f"{case.name}: exit status {status} after the fault was removed")
            return
        result, wanted = case.result(out), self.reference[case.name]
        if result != wanted:
            fault.lost.append(f"{case.name}: {difference(result, wanted)}")
        fault.lost += [f"{case.name}: {path} was left behind" for path in left_behind(out)]

    def _run_checked(self, arguments: Sequence[str]) -> None:
        if status := self.run(arguments):
            raise RuntimeError(f"{' '.join(arguments)}: exit status {status}; see {self.folder / 'log'}")

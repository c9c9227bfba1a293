"""What faults are put into: commands on toys, and what each of them gives without a fault."""

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
    """What came of one kind of fault.

    Attributes:
        name: on the page.
        answered: exit statuses that were given.
        injected: how often.
        compared: results held against those without a fault.
        lost: what differed, or was answered otherwise.
        skipped: why it could not be injected here; empty where it could.
    """

    name: str
    answered: set[int] = field(default_factory=set)
    injected: int = 0
    compared: int = 0
    lost: list[str] = field(default_factory=list)
    skipped: str = ""


class Bench:
    """Commands on toys, and what each of them gives without a fault.

    Args:
        folder: what is left there by other names is not touched.
        draw: decides moments and places.
        cases: on which commands; None for `COMMANDS`, on models and data that are written to `folder`.
    """

    def __init__(self, folder: Path, draw: random.Random, cases: Mapping[str, Case] | None = None) -> None:
        self.folder, self.draw = folder, draw
        made = {case.name: case for case in make_cases(folder, self._must)} if cases is None else cases
        self.cases = {name: made[name] for name in COMMANDS if name in made}
        self.whole, self.seconds = {}, {}
        for name, case in self.cases.items():
            began = time.perf_counter()
            out = folder / "whole" / name.replace(" ", "-")
            self._must(case.begin(out))
            self.whole[name] = case.result(out)
            self.seconds[name] = time.perf_counter() - began
        self._number = 0

    @property
    def train(self) -> Case:
        """The one whose process is stopped, or whose files are damaged."""
        return self.cases[COMMANDS[0]]

    def new(self) -> Path:
        """A place that nothing is in."""
        self._number += 1
        return self.folder / f"out{self._number}"

    def do(self, arguments: Sequence[str], log: Path | None = None, **options: object) -> int:
        """A command to its end; its exit status."""
        return finish(start(arguments, log or self.folder / "log", **options))  # pyright: ignore[reportArgumentType]

    def go_on(self, fault: Fault, case: Case, out: Path) -> None:
        """Give a command again once the fault is gone, and hold what it gives against what it gives without one."""
        arguments = case.again(out)
        self.compare(fault, case, out, self.do(arguments) if arguments is not None else 0)

    def compare(self, fault: Fault, case: Case, out: Path, status: int) -> None:
        """Hold what a command gave at last against what it gives without a fault."""
        fault.compared += 1
        if status:
            fault.lost.append(f"{case.name}: exit status {status} once the fault was gone")
            return
        found, wanted = case.result(out), self.whole[case.name]
        if found != wanted:
            fault.lost.append(f"{case.name}: {difference(found, wanted)}")
        fault.lost += [f"{case.name}: {path} stayed" for path in left_behind(out)]

    def _must(self, arguments: Sequence[str]) -> None:
        if status := self.do(arguments):
            raise RuntimeError(f"{' '.join(arguments)}: exit status {status}; see {self.folder / 'log'}")

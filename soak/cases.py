"""The commands that are killed, on toys: how each is begun and gone on with, and what two equal results share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.toys import make_bert, make_recipe

from kasatune.io.run_layout import CARD, REPORT
from kasatune.recipes.schema import to_yaml

TRAINED = ("kasa", "adalora", "dylora", "ist", "full")
# Times, dates and what the process itself adds: equal runs differ in these and in nothing else.
_OWN = {
    *("train_seconds", "evaluate_seconds", "finished", "peak_memory_bytes", "bytes", "done_now", "command"),
}
_PAGES = (REPORT, CARD, "comparison.md", "comparison.tex")


@dataclass(frozen=True)
class Case:
    """A command.

    Attributes:
        name: on the page.
        begin: its arguments, given where its result goes.
        further: those that are added where a stopped one left something; None where it leaves a whole result or none.
        result: what two equal results share, by name.
        checkpoints: whether it is one run, whose checkpoints can be compared too.
    """

    name: str
    begin: Callable[[Path], Sequence[str]]
    further: Sequence[str] | None
    result: Callable[[Path], dict[str, Any]]
    checkpoints: bool = False

    @property
    def command(self) -> str:
        """The command's name without what it is given."""
        return self.name.replace(",", " ").split()[0]

    def again(self, out: Path) -> Sequence[str] | None:
        """What is given after a stop; None where nothing is left to do."""
        if not out.exists():
            return self.begin(out)
        return None if self.further is None else [*self.begin(out), *self.further]


def make_cases(folder: Path, run: Callable[[Sequence[str]], None]) -> list[Case]:
    """Every command, on models and data that are written to `folder`.

    Args:
        folder: empty.
        run: does a command to its end; for the adapter that is exported and merged.
    """
    bert = make_bert(folder / "bert")
    cases = []
    for method in TRAINED:
        recipe = folder / f"{method}.yaml"
        settings = make_recipe(bert, folder / "data", method={"name": method, "dropout": 0.1}, epochs=3)
        recipe.write_text(to_yaml(settings), encoding="utf-8")
        case = _case(f"train, {method}", ["train", str(recipe)], ("--resume",))
        cases.append(replace(case, checkpoints=True))
    run(["train", str(folder / "kasa.yaml"), "--out", str(folder / "trained")])
    compared = ["compare", str(folder / "kasa.yaml"), "--methods", "kasa,lora", "--seeds", "0,1", "--trials", "1"]
    tails = ["decompose", str(bert), "--rank", "3"]
    export = ["export", str(folder / "trained"), "--to"]
    merge = ["merge", str(folder / "trained")]
    cases += [
        _case("compare", compared, ()),
        _case("decompose", tails, ("--resume",)),
        _case("export --to lora", [*export, "lora"], None),
        _case("export --to peft-kasa", [*export, "peft-kasa"], None),
        _case("merge", merge, None),
    ]
    return cases


def files(folder: Path) -> dict[str, Any]:
    """Every file below `folder` by name, as digest or, without what is of one process alone, as content."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name in _PAGES:
            continue
        if path.suffix == ".json":
            found[name] = _plain(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".jsonl":
            found[name] = [_plain(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        elif path.suffix == ".csv":
            found[name] = len(path.read_text(encoding="utf-8").splitlines())
        elif path.suffix == ".yaml":
            lines = path.read_text(encoding="utf-8").splitlines()
            found[name] = [line for line in lines if not line.startswith("output:")]
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def left_behind(out: Path) -> list[str]:
    """What a kill left in or beside a result."""
    beside = [path for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")]
    within = [path for path in out.rglob("*") if "unfinished" in path.name or path.name == ".lock"]
    return sorted(str(path) for path in beside + within)


def difference(one: Any, other: Any) -> str:
    """Where two results differ first, as a path of keys."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key):
                return f"{key}/{difference(one.get(key), other.get(key))}"
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (first, second) in enumerate(zip(one, other, strict=True)):
            if first != second:
                return f"{number}/{difference(first, second)}"
    return f"{one!r:.60} was {other!r:.60}"


def _case(name: str, arguments: Sequence[str], further: Sequence[str] | None) -> Case:
    return Case(name, lambda out: [*arguments, "--out", str(out)], further, files)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key not in _OWN and not key.startswith("seconds")}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value

"""The commands that the soak kills, on toy models: how to start and resume each, and how to compare their results."""

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
# Times, dates and other values of a single process: equal runs differ only in these.
_OWN = {
    *("train_seconds", "evaluate_seconds", "finished", "peak_memory_bytes", "bytes", "done_now", "command"),
}
_PAGES = (REPORT, CARD, "comparison.md", "comparison.tex")


@dataclass(frozen=True)
class Case:
    """A command and how to start, resume and compare it.

    Attributes:
        name: its name on the page.
        begin: makes its arguments from the path of its result.
        further: arguments added to repeat it after a stop that left files; None if it leaves a complete result or none.
        result: reads the parts of a result that are equal in equal results, by name.
        checkpoints: whether it is a single run, whose checkpoints can be compared too.
    """

    name: str
    begin: Callable[[Path], Sequence[str]]
    further: Sequence[str] | None
    result: Callable[[Path], dict[str, Any]]
    checkpoints: bool = False

    @property
    def command(self) -> str:
        """The command's name without its arguments."""
        return self.name.replace(",", " ").split()[0]

    def again(self, out: Path) -> Sequence[str] | None:
        """Return the arguments after a stop; None if nothing is left to do."""
        if not out.exists():
            return self.begin(out)
        return None if self.further is None else [*self.begin(out), *self.further]


def make_cases(folder: Path, run: Callable[[Sequence[str]], None]) -> list[Case]:
    """Make every command, with toy models and data in `folder`.

    Args:
        folder: an empty directory.
        run: runs a command to its end; it trains the adapter that is exported and merged.
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
    """Map each file below `folder` to its SHA-256 or, for text formats, its content without times and dates."""
    contents: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name in _PAGES:
            continue
        if path.suffix == ".json":
            contents[name] = _plain(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".jsonl":
            contents[name] = [_plain(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        elif path.suffix == ".csv":
            contents[name] = len(path.read_text(encoding="utf-8").splitlines())
        elif path.suffix == ".yaml":
            lines = path.read_text(encoding="utf-8").splitlines()
            contents[name] = [line for line in lines if not line.startswith("output:")]
        else:
            contents[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return contents


def left_behind(out: Path) -> list[str]:
    """List the temporary files and locks in or beside a result."""
    beside = [path for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")]
    within = [path for path in out.rglob("*") if "unfinished" in path.name or path.name == ".lock"]
    return sorted(str(path) for path in beside + within)


def difference(one: Any, other: Any) -> str:
    """Describe the first difference of two results, as a path of keys and the two values."""
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

"""Bad inputs kept as data: read from the YAML files beside this one, each made real in a folder of its own."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.bad_inputs.makers import make

FAMILIES = ("recipes", "data", "models", "adapters", "commands")
RECIPE: dict[str, Any] = {
    "model": {"name": "model"},
    "task": {
        "name": "classification",
        "train": "train.csv",
        "validation": "validation.csv",
        "text": "text",
        "label": "label",
        "max_length": 32,
    },
    "method": {"r": 2, "target_modules": ["query", "value"]},
    "training": {"epochs": 1, "batch_size": 16, "device": "cpu"},
    "output": "out",
}


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        family: the file that it is kept in.
        id: what is wrong, in words.
        run: the command line, after `kasatune`.
        recipe: changes to the good recipe, by "section.key" or "section"; written to bad.yaml.
        text: the whole of bad.yaml instead, or how it is made.
        files: what is put in the place of good files: text, or how it is made.
        says: parts of the one message.
        lacks: what must not be shown.
        status: the exit status.
        long: only where there is time.
    """

    family: str
    id: str
    run: list[str]
    says: list[str]
    recipe: dict[str, Any] | None = None
    text: Any = None
    files: dict[str, Any] = field(default_factory=dict)
    lacks: list[str] = field(default_factory=list)
    status: int = 2
    long: bool = False

    def put(self, folder: Path) -> None:
        """Make the input real in `folder`, which holds the good files."""
        for name, content in self.files.items():
            make(folder / name, content)
        if self.text is not None:
            make(folder / "bad.yaml", self.text)
        else:
            values = _changed(RECIPE, self.recipe or {})
            (folder / "bad.yaml").write_text(yaml.safe_dump(values, sort_keys=False, width=10_000), encoding="utf-8")


def cases() -> list[Case]:
    """Every bad input, in the order of the files."""
    found = []
    for family in FAMILIES:
        entries = yaml.safe_load(Path(__file__).with_name(f"{family}.yaml").read_text(encoding="utf-8"))
        for entry in entries:
            run = _filled(entry.pop("run", "train bad.yaml"))
            argv = shlex.split(run) if isinstance(run, str) else run
            found.append(Case(family=family, run=argv, **entry))
    names = [(case.family, case.id) for case in found]
    assert len(set(names)) == len(names), "two bad inputs of one name"
    return found


def good_folder(folder: Path) -> Path:
    """A folder of what the bad inputs are made of: models, rows, a recipe, a finished run and its two adapters."""
    from kasatune.recipes.schema import load_recipe
    from kasatune.training.train import train
    from tests.bad_inputs.models import make_gpt
    from tests.toys import make_bert, rows, write_csv

    make_bert(folder / "model")
    make_bert(folder / "other", initializer_range=0.3)
    make_gpt(folder / "gpt")
    write_csv(folder / "train.csv", rows(16, 2, seed=1))
    write_csv(folder / "validation.csv", rows(8, 2, seed=2))
    (folder / "good.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False), encoding="utf-8")
    train(load_recipe(folder / "good.yaml").model_copy(update={"output": "run"}), folder / "run")
    for ours, theirs in (("kasa", "kasa"), ("lora", "adapter")):
        shutil.copytree(folder / "run" / theirs, folder / ours)
    (folder / "temporary").mkdir()
    return folder


def listing(folder: Path) -> dict[str, str]:
    """Every entry of a folder with what it holds, to see whether something was written."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*"))}


def faults(case: Case, status: int, out: str, err: str) -> list[str]:
    """In what a command fell short of one clear refusal, in words."""
    found = []
    if status != case.status:
        found.append(f"exit status {status}, not {case.status}")
    if out:
        found.append(f"{len(out)} characters on standard output")
    if not err.startswith("error: ") or err.count("error: ") != 1 + sum(part.count("error: ") for part in case.says):
        found.append("not one message")
    if "Traceback" in err:
        found.append("a traceback")
    if len(err) > 4000:
        found.append(f"a message of {len(err):,} characters")
    found += [f"does not say {part!r}" for part in case.says if part not in err]
    found += [f"shows {part!r}" for part in [*case.lacks, "\x1b["] if part in err]
    return found


def _changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for place, value in changes.items():
        section, _, key = place.partition(".")
        holder = result[section] if key else result
        if value == "<absent>":
            holder.pop(key or section, None)
        else:
            holder[key or section] = _filled(value)
    return result


def _filled(value: Any) -> Any:
    """A text, or the text that {make: repeat, ...} stands for."""
    if isinstance(value, dict) and value.get("make") == "repeat":
        return value.get("before", "") + value["unit"] * value["times"] + value.get("after", "")
    return value


def _content(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"a link to {path.readlink()}"
    if not stat.S_ISREG(mode):
        return "a folder" if stat.S_ISDIR(mode) else "special"
    if path.stat().st_size > 1 << 24:
        return f"{path.stat().st_size} bytes, {path.stat().st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()

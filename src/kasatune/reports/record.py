"""The files of a run directory that reports are made from, read once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kasatune.errors import InputError
from kasatune.methods.table import METHODS
from kasatune.tasks.table import TASKS


@dataclass(frozen=True)
class RunRecord:
    """What a run directory says about its run.

    Attributes:
        run_dir: the run directory.
        recipe: recipe.yaml, every default filled in.
        recipe_text: recipe.yaml as it is written.
        metrics: metrics.json.
        history: the events of history.jsonl in order; empty where the method has no training steps.
        spectrum: the layers of spectrum.json; empty for methods other than KaSA.
    """

    run_dir: Path
    recipe: Mapping[str, Any]
    recipe_text: str
    metrics: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    spectrum: tuple[Mapping[str, Any], ...]

    @property
    def model_name(self) -> str:
        """The base model's name as the recipe gives it."""
        return str(self.recipe.get("model", {}).get("name", "unknown model"))

    @property
    def task_name(self) -> str:
        """The name of the task, as in recipes."""
        return str(self.metrics.get("task") or self.recipe.get("task", {}).get("name", "unknown task"))

    @property
    def task_kind(self) -> str:
        """The kind of task: "classification", "regression" or "generation"."""
        info = TASKS.get(self.task_name)
        return info.kind if info else str(self.metrics.get("kind", "classification"))

    @property
    def task_title(self) -> str:
        """What the task is, in a few words; its name where the table of tasks does not hold it."""
        info = TASKS.get(self.task_name)
        return info.title if info else self.task_name

    @property
    def method_name(self) -> str:
        """The name of the method, as in recipes."""
        return str(self.recipe.get("method", {}).get("name", "unknown method"))

    @property
    def method_title(self) -> str:
        """The method's name in the field."""
        info = METHODS.get(self.method_name)
        return info.title if info else self.method_name

    @property
    def scores(self) -> Mapping[str, float]:
        """The scores of the selected state, reloaded from the saved files."""
        return self.metrics.get("metrics") or {}

    @property
    def primary(self) -> str | None:
        """The score that selects the best epoch; the first score where the task does not say."""
        info = TASKS.get(self.task_name)
        if info and info.primary in self.scores:
            return info.primary
        return next(iter(self.scores), None)

    @property
    def score_names(self) -> list[str]:
        """The names of the scores, the primary one first."""
        return sorted(self.scores, key=lambda name: name != self.primary)

    def events(self, kind: str) -> list[Mapping[str, Any]]:
        """The events of one kind: "train", "evaluate" or "sigma"."""
        return [event for event in self.history if event.get("event") == kind]


def read_run(run_dir: Path) -> RunRecord:
    """Read recipe.yaml and metrics.json, and history.jsonl and spectrum.json where they exist.

    Raises:
        InputError: the directory is not a finished run, or one of its files is not what it should be.
    """
    run_dir = Path(run_dir)
    recipe_text = _read(run_dir / "recipe.yaml", required=True)
    recipe = _parse(run_dir / "recipe.yaml", recipe_text, yaml.safe_load, yaml.YAMLError)
    metrics = _parse(
        run_dir / "metrics.json", _read(run_dir / "metrics.json", required=True), json.loads, json.JSONDecodeError
    )
    history = [
        _parse(run_dir / "history.jsonl", line, json.loads, json.JSONDecodeError)
        for line in _read(run_dir / "history.jsonl").splitlines()
        if line.strip()
    ]
    spectrum_text = _read(run_dir / "spectrum.json")
    spectrum = (
        _parse(run_dir / "spectrum.json", spectrum_text, json.loads, json.JSONDecodeError) if spectrum_text else {}
    )
    return RunRecord(run_dir, recipe, recipe_text, metrics, tuple(history), tuple(spectrum.get("layers", ())))


def _read(path: Path, *, required: bool = False) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if required:
            raise InputError(
                f"{path.parent}: not a finished run, it holds no {path.name}; give the directory that "
                "`kasatune train` or `kasatune demo` wrote"
            ) from None
        return ""


def _parse(path: Path, text: str, parser: Any, fault: type[Exception]) -> Any:
    try:
        value = parser(text)
    except fault as error:
        raise InputError(f"{path}: cannot be read ({error}); run the training again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a {type(value).__name__}, not a mapping; run the training again")
    return value

"""The files of a run directory that reports are made from, read once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kasatune.data.tasks.table import TASKS
from kasatune.errors import InputError
from kasatune.io.run_layout import BASELINE, HISTORY, METRICS, PREDICTIONS, RECIPE, SPECTRUM
from kasatune.methods.table import METHODS
from kasatune.reports.formatting import metric_title
from kasatune.runs.history import read_history
from kasatune.runs.metrics import read_metrics


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
        predictions: predictions.json: the labels and predictions of the scored split; empty where it is missing.
        baseline: the run of the fitted head that lies in head/ of the run directory; None where there is none.
    """

    run_dir: Path
    recipe: Mapping[str, Any]
    recipe_text: str
    metrics: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    spectrum: tuple[Mapping[str, Any], ...]
    predictions: Mapping[str, Any]
    baseline: RunRecord | None

    @property
    def output(self) -> Path:
        """Where the run directory belongs: the recipe's output, which may still be under a temporary name."""
        return Path(self.recipe.get("output") or self.run_dir)

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
        return info.shown_title if info else self.method_name

    @property
    def adapter_note(self) -> str:
        """How `adapter/` holds the result as a plain LoRA; empty if it does not."""
        info = METHODS.get(self.method_name)
        return info.adapter_note if info else ""

    @property
    def scores(self) -> Mapping[str, float]:
        """The scores of the selected state, reloaded from the saved files."""
        return self.metrics.get("metrics") or {}

    @property
    def primary(self) -> str | None:
        """The score that is shown first: the one that selects the best epoch, of written text the paper's.

        The first score where the task does not say.
        """
        info = TASKS.get(self.task_name)
        if info and info.headline in self.scores:
            return info.headline
        return next(iter(self.scores), None)

    @property
    def split(self) -> str:
        """The split that the scores were measured on."""
        return str(self.metrics.get("split", "validation"))

    @property
    def selection(self) -> str:
        """Which state was kept and scored, in words; "" where metrics.json does not say."""
        chosen = self.metrics.get("selected") or {}
        rule, epoch = str(chosen.get("rule", "")), chosen.get("epoch")
        if rule == "best":
            info = TASKS.get(self.task_name)
            score = info.primary if info else self.primary or "score"
            return f"best {metric_title(score)} on {self.split}, epoch {epoch:g}"
        if rule == "last":
            return f"last state, epoch {epoch:g}"
        return "fitted in one go" if rule == "fitted" else rule

    @property
    def flattered(self) -> bool:
        """Whether the scored rows also chose the state."""
        return (self.metrics.get("selected") or {}).get("rule") == "best"

    @property
    def correct(self) -> list[bool] | None:
        """Which rows of the split were answered rightly; None where that is not known or not the score."""
        labels, given = self.predictions.get("labels"), self.predictions.get("predictions")
        if not labels or not given or len(labels) != len(given) or self.task_kind != "classification":
            return None
        return [label == answer for label, answer in zip(labels, given, strict=True)]

    @property
    def score_names(self) -> list[str]:
        """The names of the scores, the primary one first."""
        return sorted(self.scores, key=lambda name: name != self.primary)

    def events(self, kind: str) -> list[Mapping[str, Any]]:
        """The events of one kind: "train", "evaluate" or "sigma"."""
        return [event for event in self.history if event.get("event") == kind]


def read_run(run_dir: Path) -> RunRecord:
    """Read recipe.yaml and metrics.json, and what else there is of history.jsonl, spectrum.json and predictions.json.

    Raises:
        InputError: the directory is not a finished run, or one of its files is not what it should be.
    """
    run_dir = Path(run_dir)
    recipe_text = _read(run_dir / RECIPE, required=True)
    baseline = run_dir / BASELINE
    return RunRecord(
        run_dir=run_dir,
        recipe=_parse(run_dir / RECIPE, recipe_text, yaml.safe_load, yaml.YAMLError),
        recipe_text=recipe_text,
        metrics=read_metrics(run_dir),
        history=tuple(event.model_dump(exclude_unset=True) for event in read_history(run_dir / HISTORY)),
        spectrum=tuple(_json(run_dir / SPECTRUM).get("layers", ())),
        predictions=_json(run_dir / PREDICTIONS),
        baseline=read_run(baseline) if (baseline / METRICS).is_file() else None,
    )


def _json(path: Path) -> Mapping[str, Any]:
    text = _read(path)
    return _parse(path, text, json.loads, ValueError) if text else {}


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

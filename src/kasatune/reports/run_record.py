"""Read the files of a run directory for its reports and model cards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kasatune import wording
from kasatune.data.tasks.table import TASKS
from kasatune.errors import InputError
from kasatune.io.run_layout import BASELINE, HISTORY, METRICS, PREDICTIONS, RECIPE, SPECTRUM
from kasatune.methods.table import METHODS
from kasatune.reports.formatting import metric_title
from kasatune.runs.history import read_history
from kasatune.runs.metrics import read_metrics


@dataclass(frozen=True)
class RunRecord:
    """The content of a run directory.

    Attributes:
        run_dir: the run directory.
        recipe: recipe.yaml, with all defaults filled in.
        recipe_text: recipe.yaml as text.
        metrics: metrics.json.
        history: the events of history.jsonl in order; empty for methods without training steps.
        spectrum: the layers of spectrum.json; empty for methods other than KaSA.
        predictions: predictions.json, the labels and predictions of the scored split; empty if the file is missing.
        baseline: the run of the fitted head in the subdirectory head/; None if there is none.
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
        """The final path of the run directory, from the recipe; `run_dir` may be a temporary name while training."""
        return Path(self.recipe.get("output") or self.run_dir)

    @property
    def model_name(self) -> str:
        """The name of the base model in the recipe."""
        return str(self.recipe.get("model", {}).get("name", "unknown model"))

    @property
    def task_name(self) -> str:
        """The name of the task in recipes."""
        return str(self.metrics.get("task") or self.recipe.get("task", {}).get("name", "unknown task"))

    @property
    def task_kind(self) -> str:
        """The kind of task: "classification", "regression" or "generation"."""
        info = TASKS.get(self.task_name)
        return info.kind if info else str(self.metrics.get("kind", "classification"))

    @property
    def is_reward(self) -> bool:
        """Whether the model gives an answer to a prompt a reward."""
        info = TASKS.get(self.task_name)
        return info is not None and info.rows == "pairs" and info.kind == "regression"

    @property
    def task_title(self) -> str:
        """A short description of the task; its name for tasks that kasatune does not know."""
        info = TASKS.get(self.task_name)
        return info.title if info else self.task_name

    @property
    def method_name(self) -> str:
        """The name of the method in recipes."""
        return str(self.recipe.get("method", {}).get("name", "unknown method"))

    @property
    def method_title(self) -> str:
        """The title of the method, such as "KaSA" for "kasa"."""
        info = METHODS.get(self.method_name)
        return info.shown_title if info else self.method_name

    @property
    def adapter_note(self) -> str:
        """How `adapter/` represents the result as a plain LoRA; "" for methods without this export."""
        info = METHODS.get(self.method_name)
        return info.adapter_note if info else ""

    @property
    def scores(self) -> Mapping[str, float]:
        """The scores of the selected state, measured after loading the saved files."""
        return self.metrics.get("metrics") or {}

    @property
    def primary(self) -> str | None:
        """The name of the main score: the task's headline score, else the first one; None without scores.

        The headline score is the one that selects the best epoch; for text generation, the one that the paper reports.
        """
        info = TASKS.get(self.task_name)
        if info and info.headline in self.scores:
            return info.headline
        return next(iter(self.scores), None)

    @property
    def split(self) -> str:
        """The name of the scored split."""
        return str(self.metrics.get("split", "validation"))

    @property
    def selection(self) -> str:
        """How the scored state was selected, as text; "" if metrics.json does not record it."""
        selected = self.metrics.get("selected") or {}
        rule, epoch = str(selected.get("rule", "")), float(selected.get("epoch") or 0.0)
        if rule == "best":
            info = TASKS.get(self.task_name)
            score = info.primary if info else self.primary or "score"
            return f"best {metric_title(score)} on {self.split}, epoch {wording.epoch(epoch)}"
        if rule == "last":
            return f"last state, epoch {wording.epoch(epoch)}"
        return "fitted in closed form" if rule == "fitted" else rule

    @property
    def selected_on_scored_rows(self) -> bool:
        """Whether the state was selected on the rows that are scored, which biases its scores upwards."""
        return (self.metrics.get("selected") or {}).get("rule") == "best"

    @property
    def correct(self) -> list[bool] | None:
        """Whether each row was classified correctly; None if this is unknown or the task is not a classification."""
        labels, predicted = self.predictions.get("labels"), self.predictions.get("predictions")
        if not labels or not predicted or len(labels) != len(predicted) or self.task_kind != "classification":
            return None
        return [label == prediction for label, prediction in zip(labels, predicted, strict=True)]

    @property
    def score_names(self) -> list[str]:
        """The names of the scores, the primary one first."""
        return sorted(self.scores, key=lambda name: name != self.primary)

    def events(self, kind: str) -> list[Mapping[str, Any]]:
        """The events of one kind: "train", "evaluate", "sigma" or "routing"."""
        return [event for event in self.history if event.get("event") == kind]


def read_run(run_dir: Path, *, finished: bool = True) -> RunRecord:
    """Read recipe.yaml and metrics.json, and history.jsonl, spectrum.json and predictions.json if they exist.

    Args:
        run_dir: the run directory.
        finished: whether the run must be finished; otherwise metrics.json may be missing.

    Raises:
        InputError: the directory is not a finished run, or one of its files is damaged.
    """
    run_dir = Path(run_dir)
    recipe_text = _read(run_dir / RECIPE, required=True)
    baseline = run_dir / BASELINE
    return RunRecord(
        run_dir=run_dir,
        recipe=_parse(run_dir / RECIPE, recipe_text, yaml.safe_load, yaml.YAMLError),
        recipe_text=recipe_text,
        metrics=read_metrics(run_dir) if finished or (run_dir / METRICS).is_file() else {},
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
                f"{path.parent}: not a finished run, it has no {path.name}; give the directory that "
                "`kasatune train` or `kasatune demo` wrote"
            ) from None
        return ""


def _parse(path: Path, text: str, parser: Any, fault: type[Exception]) -> Any:
    try:
        value = parser(text)
    except fault as error:
        raise InputError(f"{path}: cannot be read ({error}); train again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: contains a {type(value).__name__}, not a mapping; train again")
    return value

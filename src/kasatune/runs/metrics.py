"""metrics.json of a run: its typed form, and its only writer and reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kasatune.errors import InputError
from kasatune.io.atomic import write_json
from kasatune.io.run_layout import METRICS
from kasatune.runs.schema_version import require_known_version

SCHEMA_VERSION = 1


class CutRows(BaseModel):
    """The rows of a split that were cut to `task.max_length`.

    Attributes:
        rows: number of rows.
        cut: how many of them were cut.
        without_end: how many lost the end-of-turn token of their answer; only of tasks that generate text.
    """

    rows: int
    cut: int
    without_end: int | None = None


class RunMetrics(BaseModel):
    """The content of metrics.json; entries that other commands add are kept.

    Attributes:
        schema_version: version of this form; 1 for files that were written without it.
        task: name of the task.
        kind: kind of the task.
        method: name of the method.
        split: the rows that were scored.
        metrics: scores of the saved files by name.
        selected: rule by which the saved state was selected, with its epoch, step and metrics in training.
        last: epoch, step and metrics of the last state.
        trainable_parameters: number of trained parameters, without the new modules.
        head_parameters: number of parameters of the new modules.
        new_modules: names of the newly made modules.
        label_names: labels of a classification, in the order of their numbers.
        text_fields: texts in one row, 1 or 2.
        data_source: where the rows come from.
        data_sha256: hash of the rows.
        parts: of a mixture, for each part its task, weight, training rows, rows drawn for an epoch and validation rows.
        adapter: the adapter that training continued from: its name in the recipe and the SHA-256 of its tensors.
        rows_cut: how many rows were cut to `task.max_length`, by split.
        start: the losses before the first step, of the untouched base and with the method attached; only of tasks that
            generate text.
        end: the same losses of the trained model.
        seconds: time spent, by phase.
        peak_memory_bytes: peak memory; None if the system does not tell.
        versions: versions of Python and of the packages that decide a result.
        interrupted: whether the run was stopped by a signal.
        diverged: whether the run was stopped because its loss or gradient was not finite.
        stopped_at: the optimizer step at which it was stopped.
    """

    model_config = ConfigDict(extra="allow")

    schema_version: int = SCHEMA_VERSION
    task: str | None = None
    kind: Literal["classification", "regression", "generation"]
    method: str | None = None
    split: str
    metrics: dict[str, Any] = {}
    selected: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    trainable_parameters: int | None = None
    head_parameters: int | None = None
    new_modules: list[str] | None = None
    label_names: list[str] | None = None
    text_fields: Literal[1, 2] = 1
    data_source: str | None = None
    data_sha256: str | None = None
    parts: dict[str, dict[str, Any]] | None = None
    adapter: dict[str, str] | None = None
    rows_cut: dict[str, CutRows] | None = None
    start: dict[str, Any] | None = None
    end: dict[str, Any] | None = None
    seconds: dict[str, Any] | None = None
    peak_memory_bytes: int | None = None
    versions: dict[str, str] | None = None
    interrupted: bool = False
    diverged: bool = False
    stopped_at: int | None = None


def write_metrics(run_dir: Path, metrics: RunMetrics) -> None:
    """Write metrics.json, which marks a run as finished; only the entries that were given."""
    given = metrics.model_dump(exclude_unset=True)
    write_json(run_dir / METRICS, {"schema_version": metrics.schema_version, **given})


def load_metrics(run_dir: Path) -> RunMetrics:
    """metrics.json of a run.

    Raises:
        InputError: it is missing, because training was not finished, is damaged, or has a newer schema version.
    """
    path = run_dir / METRICS
    if not path.is_file():
        raise InputError(f"{run_dir} has no {METRICS}: its training was not finished; use `kasatune train --resume`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise InputError(f"{path} is damaged ({fault}); train again") from fault
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object; train again")
    require_known_version(content, SCHEMA_VERSION, str(path))
    try:
        return RunMetrics.model_validate(content)
    except ValidationError as fault:
        wrong = dict.fromkeys(str(error["loc"][0]) for error in fault.errors())
        raise InputError(f"{path} is damaged (wrong or missing: {', '.join(wrong)}); train again") from fault


def read_metrics(run_dir: Path) -> dict[str, Any]:
    """The entries of metrics.json as plain data, validated.

    Raises:
        InputError: see `load_metrics`.
    """
    return load_metrics(run_dir).model_dump(exclude_unset=True)


def is_finished(run_dir: Path) -> bool:
    """Whether a run was finished, neither interrupted nor diverged."""
    if not (run_dir / METRICS).is_file():
        return False
    metrics = load_metrics(run_dir)
    return not metrics.interrupted and not metrics.diverged

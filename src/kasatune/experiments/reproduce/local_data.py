"""Find the data of a table's tasks in a local folder (`--data`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kasatune.errors import InputError
from kasatune.experiments.reproduce.published.schema import Experiment
from kasatune.recipes.validation import FILE_KINDS


def local_data(experiment: Experiment, task: str, data: Path | None) -> tuple[Mapping[str, str], str]:
    """The recipe overrides with which a task reads `data`, or no overrides and the reason why it cannot.

    Args:
        experiment: the table.
        task: a task of the table.
        data: the folder; None for the hub.

    Raises:
        InputError: there is no such folder.
    """
    if data is None:
        return {}, ""
    if not data.is_dir():
        raise InputError(f"--data: {str(data)!r}: no such folder; check the path (relative ones start at {Path.cwd()})")
    if experiment.files:
        return _file(data, experiment.files[task])
    if task.startswith("glue/"):
        from kasatune.data.tasks.glue import GLUE

        folder = GLUE[task].folder
        if not (data / folder).is_dir():
            return {}, f"{data} has no {folder}"
    return {"task.data": str(data)}, ""


def _file(data: Path, name: str) -> tuple[Mapping[str, str], str]:
    """The override for the only table in a folder whose file name starts with `name`, or the reason for none."""
    tables = sorted(path for path in data.glob(f"{name}*") if path.suffix.lower() in FILE_KINDS and path.is_file())
    if len(tables) == 1:
        return {"task.train": str(tables[0])}, ""
    if tables:
        return {}, f"{data} has several files {name}*: {', '.join(path.name for path in tables)}; keep one of them"
    return {}, f"{data} has no file {name}* that ends in one of {', '.join(FILE_KINDS)}"

"""What a folder that the user names holds for the tasks of a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kasatune.errors import InputError
from kasatune.experiments.reproduce.published.schema import Experiment
from kasatune.recipes.validation import FILE_KINDS


def local_data(experiment: Experiment, task: str, data: Path | None) -> tuple[Mapping[str, str], str]:
    """The overrides that have a task read `data`, or none and why the folder cannot serve it.

    Args:
        experiment: the table.
        task: of its recipes.
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
    """The one table in a folder whose name begins so."""
    found = sorted(path for path in data.glob(f"{name}*") if path.suffix.lower() in FILE_KINDS and path.is_file())
    if len(found) == 1:
        return {"task.train": str(found[0])}, ""
    if found:
        return {}, f"{data} has several files {name}*: {', '.join(path.name for path in found)}; leave one there"
    return {}, f"{data} has no file {name}* that ends in one of {', '.join(FILE_KINDS)}"

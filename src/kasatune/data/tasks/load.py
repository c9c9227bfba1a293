"""Load the rows of a task, by the name of the task in a recipe."""

from __future__ import annotations

from pathlib import Path

from kasatune.data.readers.faults import nearest
from kasatune.data.tasks.dataset import TaskData, TaskSettings
from kasatune.data.tasks.mixture_rows import MixtureSettings
from kasatune.data.tasks.table import TASKS
from kasatune.data.tasks.task_info import TaskInfo
from kasatune.errors import DataError


def load_task(settings: TaskSettings) -> TaskData:
    """Read the rows of a task.

    Args:
        settings: the `task` section of a recipe, or any object with its attributes.

    Raises:
        DataError: the task is unknown, or its data is missing, unreadable or inconsistent.
        WorkError: the hub cannot be reached.
    """
    info = _find(settings.name)
    return info.load_module().load(info, settings)


def load_part_evaluation(settings: MixtureSettings, part: str, data: str | Path) -> TaskData:
    """Read other rows of one part of a mixture, to score a trained model on; their only split is "validation".

    Raises:
        DataError: the mixture has no such part, or its data is missing, unreadable or inconsistent.
    """
    from kasatune.data.tasks.mixture import load_evaluation_of_part

    return load_evaluation_of_part(_find(settings.name), settings, part, str(data))


def load_evaluation(settings: TaskSettings, data: str | Path, label_names: tuple[str, ...] | None) -> TaskData:
    """Read other rows of the same task, to score a trained model on; their only split is "validation".

    Args:
        settings: what the model was trained with; `max_eval` applies here too.
        data: a file for `classification`, `regression`, `text-generation`, `instruction`, the data-to-text tasks and
            those of commonsense; for GLUE a folder of the release, whose development set is read (MNLI: both,
            "validation" and "validation_mismatched").
        label_names: labels that the model was trained on, in the order of their numbers; None if there are none.

    Raises:
        DataError: the data is missing, unreadable or inconsistent, or a label is not in `label_names`.
    """
    info = _find(settings.name)
    if not info.keys:
        raise DataError(f"task {info.name} makes its own rows ({info.source}) and takes no other data")
    return info.load_module().load_evaluation(info, settings, str(data), label_names)


def _find(name: str) -> TaskInfo:
    if name not in TASKS:
        raise DataError(f"task.name: {name!r} is not a task{nearest(name, list(TASKS))} (tasks: {', '.join(TASKS)})")
    return TASKS[name]

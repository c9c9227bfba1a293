"""The rows of a task, from the name in a recipe."""

from __future__ import annotations

from pathlib import Path

from kasatune.data.readers.faults import nearest
from kasatune.data.tasks.dataset import TaskData, TaskSettings, make_task_data
from kasatune.data.tasks.table import TASKS, TaskInfo
from kasatune.errors import DataError

_OWN = ("classification", "regression")
_DATA_TO_TEXT = ("e2e", "webnlg", "dart")


def load_task(settings: TaskSettings) -> TaskData:
    """Read the rows of a task.

    Args:
        settings: the `task` section of a recipe, or anything with its attributes.

    Raises:
        DataError: the task is unknown, or its data is missing, unreadable or inconsistent.
        WorkError: the hub cannot be reached.
    """
    info = _info(settings.name)
    if info.name in _OWN:
        from kasatune.data.tasks.labelled_text import load_own

        return load_own(info, settings)
    if info.name == "demo":
        from kasatune.data.tasks.demo import load_demo

        return load_demo(info, settings)
    if info.name in _DATA_TO_TEXT:
        from kasatune.data.tasks.data_to_text import load_data_to_text

        return load_data_to_text(info, settings)
    if info.name == "text-generation":
        from kasatune.data.tasks.text_generation import load_prompted

        return load_prompted(info, settings)
    if info.name.startswith("commonsense"):
        from kasatune.data.tasks.commonsense import load_commonsense

        return load_commonsense(info, settings)
    if info.name == "instruction":
        from kasatune.data.tasks.instruction import load_instruction

        return load_instruction(info, settings)
    from kasatune.data.tasks.glue import load_glue

    return load_glue(info, settings)


def load_evaluation(settings: TaskSettings, data: str | Path, label_names: tuple[str, ...] | None) -> TaskData:
    """Rows of the same task from elsewhere, to score a trained model on; their only split is "validation".

    Args:
        settings: what the model was trained with; `max_eval` counts here too.
        data: your file for `classification`, `regression`, `text-generation`, `instruction`, the tasks that tell facts
            and those of commonsense; for GLUE a folder of the release, whose development set is read (MNLI: both,
            "validation" and "validation_mismatched").
        label_names: what the model was trained on, in the order of its label numbers; None where there are none.

    Raises:
        DataError: the data is missing, unreadable or inconsistent, or a label is not among `label_names`.
    """
    info = _info(settings.name)
    if info.name in _OWN:
        from kasatune.data.tasks.labelled_text import read_own_rows

        splits, notes = {"validation": read_own_rows(Path(data), settings, label_names)}, []
    elif info.name == "demo":
        raise DataError("the task demo makes its own rows from installed packages; it takes no other data")
    elif info.name in _DATA_TO_TEXT:
        from kasatune.data.tasks.data_to_text import read_pairs

        splits, notes = {"validation": read_pairs(info.name, Path(data))}, []
    elif info.name == "text-generation":
        from kasatune.data.tasks.text_generation import read_prompted

        splits, notes = {"validation": read_prompted(Path(data), settings)}, []
    elif info.name.startswith("commonsense"):
        from kasatune.data.tasks.commonsense import read_commonsense

        splits, notes = {"validation": read_commonsense(Path(data))}, []
    elif info.name == "instruction":
        from kasatune.data.tasks.instruction import read_instructions

        rows, notes, data = read_instructions(str(data))
        splits = {"validation": rows}
    else:
        from kasatune.data.tasks.glue_files import read_release

        splits, notes = read_release(info.name, Path(data), train=False)
    return make_task_data(
        info, splits, label_names=label_names, source=str(data), notes=notes, max_eval=settings.max_eval
    )


def _info(name: str) -> TaskInfo:
    if name not in TASKS:
        raise DataError(f"task.name: {name!r} is not a task{nearest(name, list(TASKS))} (tasks: {', '.join(TASKS)})")
    return TASKS[name]

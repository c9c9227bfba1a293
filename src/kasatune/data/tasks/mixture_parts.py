"""The parts of a task: those of a mixture, or the task itself. Importing this imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kasatune.data.tasks.table import TASKS
from kasatune.data.tasks.task_info import TaskInfo

MIXTURE = "mixture"


def settings_by_part(settings: Any) -> dict[str, Any]:
    """The settings of each part of a mixture by its name; of another task, the task itself by its name.

    Args:
        settings: the `task` section of a recipe.
    """
    if settings.name != MIXTURE:
        return {settings.name: settings}
    return {part.part_name: part for part in settings.parts or ()}


def infos_by_part(settings: Any) -> dict[str, TaskInfo]:
    """The row in the table of tasks of each part, see `settings_by_part`; unknown tasks are left out."""
    return {name: TASKS[part.name] for name, part in settings_by_part(settings).items() if part.name in TASKS}


def part_tasks(settings: Any) -> Mapping[str, str]:
    """The task of each part of a mixture; empty for other tasks."""
    if settings.name != MIXTURE:
        return {}
    return {name: part.name for name, part in settings_by_part(settings).items()}


def reads_chats(settings: Any) -> bool:
    """Whether a task has rows that are conversations, for which a chat template is needed."""
    return any(info.uses_chat_template for info in infos_by_part(settings).values())


def parts_of_hub(settings: Any) -> list[str]:
    """The parts whose rows come from the hub, so that reading them needs a network."""
    return [
        name
        for name, part in settings_by_part(settings).items()
        if part.name in TASKS and TASKS[part.name].reads_hub(part)
    ]


def in_turn(parts: Sequence[str]) -> list[int]:
    """The indices of rows in an order that takes one row of each part in turn.

    Args:
        parts: the part of each row.
    """
    places: dict[str, int] = {}
    ranks: list[int] = []
    for part in parts:
        ranks.append(places.get(part, 0))
        places[part] = ranks[-1] + 1
    return sorted(range(len(parts)), key=lambda index: ranks[index])

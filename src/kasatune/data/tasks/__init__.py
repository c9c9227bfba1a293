"""The tasks: one row and one module each. Importing this package imports no task module and nothing heavy."""

from __future__ import annotations

from kasatune.data.tasks.load import load_evaluation, load_part_evaluation, load_task
from kasatune.data.tasks.table import TASKS, register_task
from kasatune.data.tasks.task_info import TaskInfo

__all__ = ["TASKS", "TaskInfo", "load_evaluation", "load_part_evaluation", "load_task", "register_task"]

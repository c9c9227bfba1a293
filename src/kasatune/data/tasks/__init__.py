"""Data sets with their labels and scores; importing this package reads nothing and imports nothing heavy."""

from __future__ import annotations

from kasatune.data.tasks.load import load_evaluation, load_task
from kasatune.data.tasks.table import TASKS, TaskInfo

__all__ = ["TASKS", "TaskInfo", "load_evaluation", "load_task"]

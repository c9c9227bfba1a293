"""Data sets with their labels and scores; importing this package reads nothing and imports nothing heavy."""

from __future__ import annotations

from kasatune.tasks.data import Rows, TaskData, TaskSettings
from kasatune.tasks.load import load_evaluation, load_task
from kasatune.tasks.table import TASKS, TaskInfo

__all__ = ["TASKS", "Rows", "TaskData", "TaskInfo", "TaskSettings", "load_evaluation", "load_task"]

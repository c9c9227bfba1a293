from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kasatune.data.tasks import load_task
from kasatune.data.tasks.dataset import TaskData
from kasatune.data.tokenize import Examples
from kasatune.evaluation.task_model import TaskModel
from kasatune.recipes.schema import Recipe


class Supplies:
    """Where a run has its rows from, and what is measured of it at the end; many runs may share one.

    This one reads the rows anew for every run and measures nothing.
    """

    def data(self, recipe: Recipe) -> TaskData:
        """The rows that a run trains on ("train") and is scored on ("validation").

        Raises:
            InputError: they are missing, unreadable or inconsistent.
        """
        return load_task(recipe.task)

    def examples(self, prepared: TaskModel, data: TaskData, split: str) -> Examples:
        """The rows of a split, tokenized for the model of `prepared`.

        Raises:
            DataError: there is no such split, or it is empty.
        """
        return prepared.encode(data, split)

    def measure(self, prepared: TaskModel, run_dir: Path) -> Mapping[str, Any]:
        """Further entries of metrics.json, measured of the trained model as it was loaded from `run_dir`."""
        return {}

"""What the runs of a comparison share within one process, so that it is done once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kasatune.data.tasks import load_task
from kasatune.data.tasks.dataset import TaskData
from kasatune.data.tokenize import Examples
from kasatune.evaluation.task_model import TaskModel
from kasatune.experiments.compare.forgetting import Untrained, measure_untrained, retention
from kasatune.experiments.compare.search_holdout import search_data
from kasatune.io.environment import peak_memory
from kasatune.models.load import load_base
from kasatune.recipes.schema import Recipe
from kasatune.training.data_provider import Supplies

FOLDERS = ("adapter", "kasa", "checkpoint")


class Shared:
    """Rows, tokenized rows, and the base model's answers to unrelated text, each made when it is first asked for."""

    def __init__(self) -> None:
        self._data: dict[str, TaskData] = {}
        self._search: dict[str, TaskData] = {}
        self._examples: dict[tuple[str, ...], Examples] = {}
        self._untrained: dict[str, Untrained] = {}

    def data(self, recipe: Recipe) -> TaskData:
        """The rows of a task."""
        key = recipe.task.model_dump_json()
        if key not in self._data:
            self._data[key] = load_task(recipe.task)
        return self._data[key]

    def search_data(self, recipe: Recipe) -> TaskData:
        """The rows that a search sees."""
        key = recipe.task.model_dump_json()
        if key not in self._search:
            self._search[key] = search_data(self.data(recipe))
        return self._search[key]

    def supplies(self, *, search: bool) -> Supplies:
        """What `train` takes, for a run of the search or one that is reported."""
        return _SharedSupplies(self, search)

    def examples(self, prepared: TaskModel, data: TaskData, split: str) -> Examples:
        """The rows of a split, tokenized."""
        section = prepared.recipe.model
        key = (section.name, str(section.revision), str(prepared.recipe.task.max_length), data.sha256, split)
        if key not in self._examples:
            self._examples[key] = prepared.encode(data, split)
        return self._examples[key]

    def untrained(self, prepared: TaskModel) -> Untrained:
        """The base model before training, on the unrelated text."""
        recipe = prepared.recipe
        key = recipe.model.model_dump_json()
        if key not in self._untrained:
            base = load_base(
                recipe.model, kind="regression", label_names=None, seed=0, max_length=recipe.task.max_length
            )
            self._untrained[key] = measure_untrained(recipe.model, base)
        return self._untrained[key]


class _SharedSupplies(Supplies):
    def __init__(self, shared: Shared, search: bool) -> None:
        self._shared, self._search = shared, search

    def data(self, recipe: Recipe) -> TaskData:
        return self._shared.search_data(recipe) if self._search else self._shared.data(recipe)

    def examples(self, prepared: TaskModel, data: TaskData, split: str) -> Examples:
        return self._shared.examples(prepared, data, split)

    def measure(self, prepared: TaskModel, run_dir: Path) -> Mapping[str, Any]:
        if self._search:
            return {}
        found: dict[str, Any] = {"peak_memory_bytes": peak_memory()}  # before the measure below adds to it
        found["file_bytes"] = {name: size for name in FOLDERS if (size := _tensor_bytes(run_dir / name))}
        found["retention"] = retention(prepared.model, self._shared.untrained(prepared))
        return found


def _tensor_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))

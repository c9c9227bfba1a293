"""Inputs that all runs of a comparison in one process share: rows, tokenized rows, the base model's initial losses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from kasatune.data.tasks import load_task
from kasatune.data.tasks.dataset import TaskData
from kasatune.data.tasks.table import TASKS
from kasatune.data.tokenize import Examples
from kasatune.evaluation.scoring import Scores
from kasatune.evaluation.task_model import TaskModel
from kasatune.evaluation.unrelated_text import UnrelatedText
from kasatune.experiments.compare.forgetting import (
    Measured,
    Untrained,
    measure_trained,
    measure_untrained,
    write_retention,
)
from kasatune.experiments.compare.search_holdout import search_data
from kasatune.io.environment import peak_memory
from kasatune.io.run_layout import WEIGHT_FOLDERS
from kasatune.methods.shared.trained_parameters import TrainedState
from kasatune.models.device import find_device
from kasatune.models.load import load_base
from kasatune.recipes.schema import Recipe
from kasatune.training.run import DataProvider


class ProcessCache:
    """Loads each shared input on first use and keeps it for the runs that follow in this process."""

    def __init__(self) -> None:
        self._data: dict[str, TaskData] = {}
        self._search_data: dict[str, TaskData] = {}
        self._examples: dict[tuple[str, ...], Examples] = {}
        self._untrained: dict[tuple[str, UnrelatedText], Untrained] = {}

    def data(self, recipe: Recipe) -> TaskData:
        """The rows of a task."""
        key = recipe.task.model_dump_json()
        if key not in self._data:
            self._data[key] = load_task(recipe.task)
        return self._data[key]

    def search_data(self, recipe: Recipe) -> TaskData:
        """The rows of a task that the hyperparameter search sees."""
        key = recipe.task.model_dump_json()
        if key not in self._search_data:
            self._search_data[key] = search_data(self.data(recipe))
        return self._search_data[key]

    def data_provider(self, *, search: bool, unrelated: UnrelatedText | None, writes_text: bool) -> DataProvider:
        """The data provider of a run.

        Args:
            search: whether the run sees the rows of the search instead of all rows.
            unrelated: the text on which forgetting is measured; None to measure nothing.
            writes_text: whether the trained model writes its answers; a search trial compares losses.
        """
        return _CachedDataProvider(self, search, unrelated, writes_text)

    def examples(self, task_model: TaskModel, data: TaskData, split: str) -> Examples:
        """The rows of a split, tokenized."""
        section = task_model.recipe.model
        key = (section.base_name, str(section.revision), str(task_model.recipe.task.max_length), data.sha256, split)
        if key not in self._examples:
            self._examples[key] = task_model.encode(data, split)
        return self._examples[key]

    def untrained(self, recipe: Recipe, text: UnrelatedText) -> Untrained:
        """The base model's loss or features on the unrelated text, before training.

        Raises:
            InputError: the text is too short, or the model cannot be loaded.
        """
        generates = TASKS[recipe.task.name].kind == "generation"
        key = f"{recipe.model.model_dump_json()} {generates} {recipe.training.precision}", text
        if key not in self._untrained:
            base = load_base(
                recipe.model,
                kind="generation" if generates else "regression",
                label_names=None,
                seed=0,
                max_length=recipe.task.max_length,
            )
            model: Any = base.model
            model.to(find_device(recipe.training))
            self._untrained[key] = measure_untrained(
                recipe.model, base, text, generates=generates, precision=recipe.training.precision
            )
        return self._untrained[key]


@cache
def process_cache() -> ProcessCache:
    """The cache of this process."""
    return ProcessCache()


class _CachedDataProvider(DataProvider):
    def __init__(self, cache: ProcessCache, search: bool, unrelated: UnrelatedText | None, writes_text: bool) -> None:
        self._cache, self._search, self._unrelated, self._writes_text = cache, search, unrelated, writes_text
        self._measured: list[Measured] = []

    def data(self, recipe: Recipe) -> TaskData:
        return self._cache.search_data(recipe) if self._search else self._cache.data(recipe)

    def examples(self, task_model: TaskModel, data: TaskData, split: str) -> Examples:
        return self._cache.examples(task_model, data, split)

    def final_score(self, task_model: TaskModel, examples: Examples, data: TaskData, split: str) -> Scores:
        if self._writes_text:
            return task_model.final_score(examples, data, split)
        return task_model.score(examples, data)

    def evaluated(self, task_model: TaskModel, epoch: float) -> None:
        if self._unrelated is not None:
            before = self._cache.untrained(task_model.recipe, self._unrelated)
            values = measure_trained(task_model.model, before, task_model.recipe.training.precision)
            self._measured.append(Measured(epoch, values, TrainedState.of(task_model.model)))

    def measure(self, task_model: TaskModel, run_dir: Path) -> Mapping[str, Any]:
        if self._unrelated is None:
            return {}
        measured: dict[str, Any] = {"peak_memory_bytes": peak_memory()}  # read before a further measurement raises it
        measured["file_bytes"] = {name: size for name in WEIGHT_FOLDERS if (size := _tensor_bytes(run_dir / name))}
        before = self._cache.untrained(task_model.recipe, self._unrelated)
        model, training = task_model.model, task_model.recipe.training
        if self._measured and training.select == "last":
            after = self._measured[-1].values
        else:
            known = (seen.values for seen in self._measured if seen.valid_for(model, before, training.precision))
            after = next(known, None)
            if after is None:
                after = measure_trained(model, before, training.precision)
        epochs = [(measured.epoch, float(measured.values.mean())) for measured in self._measured]
        measured["retention"] = write_retention(run_dir, before, after, epochs)
        return measured


def _tensor_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))

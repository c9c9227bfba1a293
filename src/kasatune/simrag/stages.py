"""Train a stage as a run of the task rag-qa; continue the adapter of stage I, or merge it and begin a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from kasatune.adapter_tools.merge import merge
from kasatune.adapter_tools.resolve import has_adapter
from kasatune.data.tasks.dataset import TaskData
from kasatune.data.tasks.rag_qa import CLOSED_BOOK
from kasatune.evaluation.scoring import predictions
from kasatune.evaluation.task_model import TaskModel
from kasatune.io.atomic import atomic_write, write_json
from kasatune.io.progress import ProgressReporter
from kasatune.io.run_layout import CHECKPOINT, RECIPE
from kasatune.recipes.schema import Recipe
from kasatune.runs.metrics import is_finished
from kasatune.simrag.recipe import STAGE_ONE, SimragRecipe, stage_recipe
from kasatune.training.checkpoint_contents import (
    METHOD_STATE,
    WEIGHTS,
    load_trained_parameters,
    save_trained_parameters,
)
from kasatune.training.run import DataProvider
from kasatune.training.train import train

TRAINED = "stage-1-state"
MERGED = "stage-1-merged"


class StageData(DataProvider):
    """Reads the rows of a stage, scores the model without passages too, and carries weights between the stages.

    Args:
        closed_book: file for the scores and texts without passages.
        begin_with: folder with the trained parameters to begin with; None to begin with a new adapter.
        store_in: folder in which the trained parameters are stored; None to store none.
    """

    def __init__(self, closed_book: Path, *, begin_with: Path | None = None, store_in: Path | None = None) -> None:
        self._closed_book, self._begin_with, self._store_in = closed_book, begin_with, store_in
        self._data: TaskData | None = None

    def data(self, recipe: Recipe) -> TaskData:
        """The rows of the stage, read once."""
        if self._data is None:
            self._data = super().data(recipe)
        return self._data

    def begin(self, task_model: TaskModel) -> None:
        """Copy the trained parameters of the earlier stage into the model."""
        if self._begin_with is not None:
            state = load_file(self._begin_with / METHOD_STATE)
            task_model.method.restore_training_state(task_model.model, state)
            load_trained_parameters(task_model.model, self._begin_with / WEIGHTS)

    def trained(self, task_model: TaskModel) -> None:
        """Store the trained parameters."""
        if self._store_in is not None:
            save_trained_parameters(task_model.model, self._store_in / WEIGHTS)
            state = task_model.method.training_state(task_model.model)
            with atomic_write(self._store_in / METHOD_STATE) as temporary:
                save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, temporary)

    def measure(self, task_model: TaskModel, run_dir: Path) -> dict[str, Any]:
        """The scores without passages, as the entry `closed_book` of metrics.json."""
        assert self._data is not None
        return {CLOSED_BOOK: write_scores(task_model, self._data, CLOSED_BOOK, self._closed_book)}


def write_scores(task_model: TaskModel, data: TaskData, split: str, path: Path) -> dict[str, float]:
    """Score a split with generated answers, and write scores and texts to `path`."""
    scores = task_model.final_score(task_model.encode(data, split), data, split)
    write_json(path, {"metrics": scores.metrics, **predictions(split, scores)}, indent=None)
    return scores.metrics


def train_stage(recipe: SimragRecipe, out: Path, stage: str, display: ProgressReporter) -> Path:
    """Train the run of a stage, or resume it if it was begun.

    Raises:
        InputError: the rows, the model or the method is invalid.
        WorkError: see `train`.
    """
    run_dir = out / stage
    if is_finished(run_dir):
        return run_dir
    model = begin_with = store_in = None
    if stage == STAGE_ONE:
        store_in = out / TRAINED
    elif recipe.stage_two.begin == "continue":
        begin_with = out / TRAINED
    else:
        model = {"name": str(_merged_base(out)), "dtype": recipe.model.dtype}
    provider = StageData(closed_book_file(out, stage), begin_with=begin_with, store_in=store_in)
    own = stage_recipe(recipe, out, stage, model)
    return train(own, run_dir, resume=(run_dir / RECIPE).is_file(), display=display, data_provider=provider)


def closed_book_file(out: Path, system: str) -> Path:
    """The file with the scores of a system without passages."""
    return out / f"{system}-closed-book.json"


def _merged_base(out: Path) -> Path:
    """The base with the adapter of stage I merged into it, or the trained checkpoint of a method without an adapter."""
    run_dir = out / STAGE_ONE
    if not has_adapter(run_dir):
        return run_dir / CHECKPOINT
    merged = out / MERGED
    if not merged.is_dir():
        merge(run_dir, merged)
    return merged

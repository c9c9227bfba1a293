"""The untouched base model on a task that generates text: its loss and texts, beside those of the methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kasatune.data.tokenize_pairs import with_reference
from kasatune.evaluation.scoring import predictions
from kasatune.evaluation.task_model import TaskModel, deterministic
from kasatune.experiments.compare.method_on_task import MethodOnTask, RunSteps
from kasatune.experiments.compare.run_id import PlannedRun, plan_base
from kasatune.io.atomic import write_json
from kasatune.io.environment import versions
from kasatune.io.library_noise import quiet
from kasatune.io.run_layout import PREDICTIONS
from kasatune.recipes.schema import Recipe
from kasatune.runs.metrics import RunMetrics, write_metrics
from kasatune.runs.provenance import trace
from kasatune.training.run import SPLIT, DataProvider

if TYPE_CHECKING:
    from kasatune.experiments.compare.run_store import FinishedRun


class BaseOnTask(MethodOnTask):
    """The single run of the untouched base on a task, in the place of a method; nothing is searched or trained."""

    @property
    def title(self) -> str:
        """The base and the task, for messages."""
        return f"untouched base on {self.task.name}"

    @property
    def label(self) -> str:
        """The base, for tables."""
        return "untouched base"

    @property
    def number_of_runs(self) -> int:
        """Always 1."""
        return 1

    @property
    def result(self) -> FinishedRun | None:
        """The run, if it is finished and has scores."""
        return next((run for _, run in self.finals if run.done), None)

    def take_finished(self, runs: Sequence[PlannedRun], results: Mapping[str, FinishedRun]) -> None:
        """Do nothing: the run is either finished or not."""

    def steps(self) -> RunSteps:
        """Yield the run."""
        self.chosen, self.searched = {}, True
        seed = self.spec.seeds[0]
        recipe = self.spec.recipe(self.task, self.variant, seed, {})
        results = yield [plan_base(recipe, self.data.sha256)]
        self.finals = [(seed, results[0])]


def score_base(recipe: Recipe, folder: Path, provider: DataProvider) -> None:
    """Score the untouched base of a recipe, and write metrics.json and predictions.json into `folder`.

    Raises:
        InputError: the model, the data or the device is not available.
    """
    with quiet(), deterministic():
        data = provider.data(recipe)
        task_model = TaskModel.for_base(recipe, data.label_names)
        examples = provider.examples(task_model, data, SPLIT)
        if task_model.info.compares_with_reference:  # the base is its own reference
            examples = with_reference(examples, *task_model.log_probabilities(examples))
        scores = provider.final_score(task_model, examples, data, SPLIT)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / PREDICTIONS, predictions(SPLIT, scores), indent=None)
    content = {
        "task": data.name,
        "kind": data.kind,
        "split": SPLIT,
        "metrics": scores.metrics,
        "data_sha256": data.sha256,
        "trainable_parameters": 0,
        "head_parameters": 0,
        "versions": versions(),
        **trace(recipe, task_model.base.revision, task_model.base.fingerprint),
    }
    write_metrics(folder, RunMetrics.model_validate(content))

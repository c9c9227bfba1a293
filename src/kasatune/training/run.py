"""A run in progress: its data, model, examples and timings, and the files that it writes to the run directory."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from kasatune.data.tasks import load_task
from kasatune.data.tasks.dataset import TaskData
from kasatune.data.tokenize import Examples
from kasatune.distributed.process_group import is_main
from kasatune.errors import DivergedError, NotFiniteError, WorkError
from kasatune.evaluation.scoring import Scores, predictions
from kasatune.evaluation.task_model import TaskModel
from kasatune.io.atomic import remove, write_json
from kasatune.io.environment import peak_memory, versions
from kasatune.io.progress import ProgressReporter, progress_listener
from kasatune.io.run_layout import HISTORY, PREDICTIONS, SPECTRUM, TENSORBOARD, WORK
from kasatune.metrics.generation import signatures
from kasatune.recipes.schema import Recipe
from kasatune.runs import directory
from kasatune.runs.history import EvaluateEvent, History, SigmaEvent
from kasatune.runs.metrics import RunMetrics, write_metrics
from kasatune.runs.provenance import trace
from kasatune.training.callback import CachedScores
from kasatune.training.checkpoint_contents import load_trained_parameters
from kasatune.training.row_samples import base_answers, worst_rows
from kasatune.training.text_losses import measure_end

TRAIN_SPLIT, SPLIT = "train", "validation"
_DISK_FULL_BYTES = 1 << 20


class DataProvider:
    """Provides the rows and tokenized examples of a run, and takes further measurements of the trained model.

    This class reads the rows for every run and measures nothing; a comparison shares a subclass between its runs.
    """

    def data(self, recipe: Recipe) -> TaskData:
        """The rows that a run trains on ("train") and is scored on ("validation").

        Raises:
            InputError: they are missing, unreadable or inconsistent.
        """
        return load_task(recipe.task)

    def examples(self, task_model: TaskModel, data: TaskData, split: str) -> Examples:
        """The rows of a split, tokenized for the model.

        Raises:
            DataError: the split does not exist or is empty.
        """
        return task_model.encode(data, split)

    def final_score(self, task_model: TaskModel, examples: Examples, data: TaskData, split: str) -> Scores:
        """The scores of the trained model that a run reports, with the text that it generates."""
        return task_model.final_score(examples, data, split)

    def begin(self, task_model: TaskModel) -> None:
        """Change the trained parameters before the first step; not called for a run that resumes from a checkpoint."""

    def trained(self, task_model: TaskModel) -> None:
        """Store what is needed of the trained model in memory, whose files have just been saved."""

    def evaluated(self, task_model: TaskModel, epoch: float) -> None:
        """Take further measurements of the model after an evaluation in training; random state is restored after."""

    def measure(self, task_model: TaskModel, run_dir: Path) -> Mapping[str, Any]:
        """Further entries of metrics.json, measured on the trained model, which was loaded from `run_dir`."""
        return {}


@dataclass(frozen=True)
class Outcome:
    """The result of training.

    Attributes:
        rule: how the saved state was selected: "best", "last" or "fitted".
        selected: epoch, step and metrics of the saved state, as measured in training.
        last: the same of the last state.
        scores: the scores of the saved state, if this process measured them.
    """

    rule: str
    selected: dict[str, Any]
    last: dict[str, Any]
    scores: CachedScores | None = None


@dataclass
class Run:
    """A run in progress.

    Attributes:
        recipe: its recipe.
        out: the run directory.
        display: receives the progress.
        device: device of the run.
        data: the rows.
        task_model: the model that is trained.
        examples: tokenized rows by split.
        seconds: time spent, by phase.
        counts: numbers of trained parameters outside and within the newly initialized modules.
        data_provider: provided the rows, and measures the trained model.
        details: further entries of metrics.json.
        on_cpu: whether the unsharded model is kept in CPU memory, because it does not fit on the device.
        base: where the base model is, if not where the recipe says.
    """

    recipe: Recipe
    out: Path
    display: ProgressReporter
    device: torch.device
    data: TaskData
    task_model: TaskModel
    examples: dict[str, Examples]
    seconds: dict[str, float]
    counts: tuple[int, int]
    data_provider: DataProvider
    details: dict[str, Any] = field(default_factory=dict)
    on_cpu: bool = False
    base: str | None = None

    @property
    def title(self) -> str:
        """Method, task and device."""
        reconstructed = " (reconstructed)" if self.task_model.method.info.reconstructed else ""
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{self.recipe.method.name}{reconstructed} on {self.data.name}, {where}"

    @property
    def work(self) -> Path:
        """The folder for checkpoints while the run is in progress."""
        return self.out / WORK

    @property
    def history(self) -> History:
        """Its history.jsonl, written by the first process only."""
        return History(self.out / HISTORY, writes=is_main())

    def load_state(self, path: Path) -> None:
        """Load the trained parameters that `save_trained_parameters` wrote into the model."""
        load_trained_parameters(self.task_model.model, path)

    def save(self, *, spectrum: bool = False) -> None:
        """Save the model in its current state to the run directory, with spectrum.json if `spectrum` is set.

        A method without a spectrum writes no spectrum.json. Files are written to a staging folder first and then moved
        into place.

        Raises:
            DivergedError: the update of a layer is not finite.
        """
        model, method = self.task_model.model, self.task_model.method
        staged = self.work / "staged"
        remove(staged)
        staged.mkdir(parents=True)
        try:
            method.save(model, staged, self.recipe.model.base_name)
        except NotFiniteError as fault:
            remove(staged)
            raise DivergedError(
                "training diverged: each trained weight is finite, but their products exceed the range of float32, and "
                "no adapter was written; lower training.learning_rate"
            ) from fault
        if self.data.kind == "generation" or self.task_model.info.uses_chat_template:
            self.task_model.save_tokenizer(staged)
        layers = method.spectrum(model, _initial_sigma(self.history)) if spectrum else []
        if layers:
            write_json(staged / SPECTRUM, {"layers": layers}, indent=None)
        directory.publish(staged, self.out)

    def finish(self, outcome: Outcome) -> None:
        """Load the saved files as a user would, score them, and write predictions.json and metrics.json.

        If the files hold bit for bit a state that was scored in training, those scores are used.
        """
        start = time.perf_counter()
        del self.task_model  # memory may not hold two models
        gc.collect()
        self.task_model = TaskModel.for_saved_run(
            self.recipe, self.data.label_names, self.out, base=self.base, device=self.device, on_cpu=self.on_cpu
        )
        cached, examples = outcome.scores, self.examples[SPLIT]
        if cached is not None and cached.valid_for(self.task_model, examples):
            scores = cached.scores
        else:
            with progress_listener(self.display.progress):
                scores = self.data_provider.final_score(self.task_model, examples, self.data, SPLIT)
        if self.data.kind == "generation":
            self.details["generation"] = self.task_model.decoding()
        if settings := signatures(scores.metrics, scores.labels):
            self.details["signatures"] = settings
        if "start" in self.details and (end := measure_end(self.task_model, examples)) is not None:
            self.details["end"] = end
        seconds = time.perf_counter() - start
        self.seconds["evaluate"] = self.seconds.get("evaluate", 0.0) + seconds
        if self.task_model.method.info.fitted:
            metrics = {"metrics": scores.metrics}
            outcome = replace(outcome, selected=outcome.selected | metrics, last=outcome.last | metrics)
            self.history.add(EvaluateEvent(**outcome.last, split=SPLIT, seconds=round(seconds, 3)))
            self.display.evaluated(0.0, scores.metrics)
        write_json(self.out / PREDICTIONS, {**predictions(SPLIT, scores), **self._samples(scores)}, indent=None)
        if (self.work / "runs").is_dir():  # where the Trainer's TensorBoard callback writes
            remove(self.out / TENSORBOARD)
            (self.work / "runs").rename(self.out / TENSORBOARD)
        self.write_metrics(outcome, scores.metrics, **self.data_provider.measure(self.task_model, self.out))
        remove(self.work)

    def _samples(self, scores: Scores) -> dict[str, Any]:
        """Further entries of predictions.json, for the report: the worst rows, or answers of the untouched base."""
        if self.data.kind != "generation":
            return {"worst": worst_rows(scores, self.data.splits[SPLIT])}
        answers = base_answers(self.task_model, scores)
        return {"base_predictions": answers} if answers else {}

    def write_metrics(self, outcome: Outcome, metrics: dict[str, float], **further: Any) -> None:
        """Write metrics.json, which marks the run as finished."""
        trained, head = self.counts
        base = self.task_model.base
        content = {
            "task": self.data.name,
            "kind": self.data.kind,
            "method": self.recipe.method.name,
            "split": SPLIT,
            "metrics": metrics,
            "selected": {"rule": outcome.rule, **outcome.selected},
            "last": outcome.last,
            "trainable_parameters": trained,
            "head_parameters": head,
            "new_modules": list(base.new_modules),
            "label_names": list(self.data.label_names) if self.data.label_names else None,
            "text_fields": self.data.text_fields,
            "data_source": self.data.source,
            "data_sha256": self.data.sha256,
            **({"parts": {part.name: part.as_dict() for part in self.data.parts}} if self.data.parts else {}),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "peak_memory_bytes": peak_memory(),
            "versions": versions(),
            **trace(self.recipe, base.revision if self.base is None else self.recipe.model.revision, base.fingerprint),
        }
        write_metrics(self.out, RunMetrics.model_validate(content | self.details | further))


@contextmanager
def work_errors(out: Path) -> Generator[None]:
    """Raise a full disk or exhausted GPU memory as a WorkError with the remedy.

    Raises:
        WorkError: a file could not be written, or the GPU ran out of memory.
    """
    try:
        yield
    except OSError as fault:
        raise WorkError(f"{out}: {fault.strerror or fault} ({fault.filename or 'while writing'})") from fault
    except torch.OutOfMemoryError as fault:
        raise WorkError(
            "the GPU ran out of memory: raise training.gradient_accumulation, lower training.eval_batch_size, "
            "or set training.gradient_checkpointing"
        ) from fault
    except (RuntimeError, SafetensorError) as fault:  # torch and safetensors do not report which write failed, or why
        if shutil.disk_usage(out).free < _DISK_FULL_BYTES:
            raise WorkError(f"{out}: the disk is full; free some space, then use --resume") from fault
        raise


def _initial_sigma(history: History) -> dict[str, list[float | None]]:
    return next((event.layers for event in history.events() if isinstance(event, SigmaEvent)), {})

"""A run under way, and the files that it leaves."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from kasatune.data.tasks.dataset import TaskData
from kasatune.data.tokenize import Examples
from kasatune.distributed.process_group import is_main
from kasatune.errors import WorkError
from kasatune.evaluation.scoring import predictions
from kasatune.evaluation.task_model import TaskModel
from kasatune.io.atomic import remove, write_json
from kasatune.io.environment import peak_memory, versions
from kasatune.io.progress import ProgressReporter, progress_listener
from kasatune.metrics.generation import signatures
from kasatune.models.device import find_device
from kasatune.recipes.schema import Recipe
from kasatune.runs import directory
from kasatune.runs.directory import HISTORY, METRICS, PREDICTIONS, SPECTRUM, TENSORBOARD, WORK, History
from kasatune.runs.provenance import trace
from kasatune.training.cached_scores import Scored
from kasatune.training.data_provider import Supplies
from kasatune.training.trainer import load_state

SPLIT = "validation"
_NO_ROOM = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """What training came to.

    Attributes:
        rule: how the saved state was selected: "best", "last" or "fitted".
        selected: epoch, step and metrics of the saved state, as measured in training.
        last: the same of the last state.
        scored: the saved state's scores, where this process measured them.
    """

    rule: str
    selected: dict[str, Any]
    last: dict[str, Any]
    scored: Scored | None = None


@dataclass
class Run:
    """A run under way.

    Attributes:
        recipe: what it does.
        out: the run directory.
        display: who is told.
        data: rows.
        prepared: the model that is trained.
        examples: its rows, tokenized, by split.
        seconds: time spent, by part.
        counts: numbers of trained parameters outside and within the newly made modules.
        supplies: what else is measured at the end.
        details: further entries of metrics.json.
        stays_in_memory: whether the whole model has no room on the device, where its shards are trained.
    """

    recipe: Recipe
    out: Path
    display: ProgressReporter
    data: TaskData
    prepared: TaskModel
    examples: dict[str, Examples]
    seconds: dict[str, float]
    counts: tuple[int, int]
    supplies: Supplies
    details: dict[str, Any] = field(default_factory=dict)
    stays_in_memory: bool = False

    @property
    def title(self) -> str:
        """The run in a few words, with the device that it computes on."""
        rebuilt = " (reconstructed)" if self.prepared.method.info.reconstructed else ""
        device = find_device(self.recipe.training)
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return f"{self.recipe.method.name}{rebuilt} on {self.data.name}, {where}"

    @property
    def work(self) -> Path:
        """Where checkpoints are while the run goes on."""
        return self.out / WORK

    @property
    def history(self) -> History:
        """Its history.jsonl; written by the first process alone."""
        return History(self.out / HISTORY, writes=is_main())

    def put_state(self, path: Path) -> None:
        """Load trained parameters that `save_state` wrote into the model."""
        load_state(self.prepared.model, path)

    def save(self, *, spectrum: bool = False) -> None:
        """Put the model as it is into the run directory, and spectrum.json if asked for and the method has one."""
        model, method = self.prepared.model, self.prepared.method
        staged = self.work / "staged"
        remove(staged)
        staged.mkdir(parents=True)
        method.save(model, staged, self.recipe.model.name)
        layers = method.spectrum(model, _initial_sigma(self.history)) if spectrum else []
        if layers:
            write_json(staged / SPECTRUM, {"layers": layers}, indent=None)
        directory.publish(staged, self.out)

    def finish(self, outcome: Outcome) -> None:
        """Load the saved files as anyone would, score them, and write what came out.

        Where they hold bit for bit what was scored in training, those scores are theirs.
        """
        start = time.perf_counter()
        del self.prepared  # two models at once may be more than the memory holds
        gc.collect()
        self.prepared = TaskModel.for_saved_run(
            self.recipe, self.data.label_names, self.out, on_cpu=self.stays_in_memory
        )
        scored, examples = outcome.scored, self.examples[SPLIT]
        if scored is not None and scored.holds_for(self.prepared, examples):
            scores = scored.scores
        else:
            with progress_listener(self.display.progress):
                scores = self.prepared.final_score(examples, self.data, SPLIT)
        if self.data.kind == "generation":
            self.details["generation"] = self.prepared.decoding()
        if settings := signatures(scores.metrics, scores.labels):
            self.details["signatures"] = settings
        seconds = time.perf_counter() - start
        self.seconds["evaluate"] = self.seconds.get("evaluate", 0.0) + seconds
        if self.prepared.method.info.fitted:
            metrics = {"metrics": scores.metrics}
            outcome = replace(outcome, selected=outcome.selected | metrics, last=outcome.last | metrics)
            self.history.add("evaluate", **outcome.last, split=SPLIT, seconds=round(seconds, 3))
            self.display.evaluated(0.0, scores.metrics)
        write_json(self.out / PREDICTIONS, predictions(SPLIT, scores), indent=None)
        if (self.work / "runs").is_dir():  # where the Trainer has TensorBoard write
            remove(self.out / TENSORBOARD)
            (self.work / "runs").rename(self.out / TENSORBOARD)
        self.write_metrics(outcome, scores.metrics, **self.supplies.measure(self.prepared, self.out))
        remove(self.work)

    def write_metrics(self, outcome: Outcome, metrics: dict[str, float], **further: Any) -> None:
        """Write metrics.json, which makes the run a finished one."""
        trained, head = self.counts
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
            "new_modules": list(self.prepared.base.new_modules),
            "label_names": list(self.data.label_names) if self.data.label_names else None,
            "text_fields": self.data.text_fields,
            "data_source": self.data.source,
            "data_sha256": self.data.sha256,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "peak_memory_bytes": peak_memory(),
            "versions": versions(),
            **trace(self.recipe, self.prepared.base.revision, self.prepared.base.fingerprint),
        }
        write_json(self.out / METRICS, content | self.details | further)


@contextmanager
def failures_told(out: Path) -> Iterator[None]:
    """What fails for want of disk or GPU memory, as an error that says so.

    Raises:
        WorkError: a file could not be written, or the GPU's memory was exhausted.
    """
    try:
        yield
    except OSError as fault:
        raise WorkError(f"{out}: {fault.strerror or fault} ({fault.filename or 'while writing'})") from fault
    except torch.OutOfMemoryError as fault:
        raise WorkError(
            "the GPU's memory was exhausted: raise training.gradient_accumulation, lower training.eval_batch_size, "
            "or set training.gradient_checkpointing"
        ) from fault
    except (RuntimeError, SafetensorError) as fault:  # torch and safetensors do not say which write failed, or why
        if shutil.disk_usage(out).free < _NO_ROOM:
            raise WorkError(f"{out}: the disk is full; make room, then use --resume") from fault
        raise


def _initial_sigma(history: History) -> dict[str, list[float]]:
    return next((event["layers"] for event in history.events() if event["event"] == "sigma"), {})

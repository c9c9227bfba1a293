"""One run: from a recipe to a run directory."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from kasatune.errors import DivergedError, WorkError
from kasatune.methods.base import trainable
from kasatune.runs import directory
from kasatune.runs.directory import HISTORY, METRICS, PREDICTIONS, SPECTRUM, WORK, History, write_json
from kasatune.runs.display import Display
from kasatune.runs.interrupt import Interrupt
from kasatune.runs.keeper import Keeper, Progress
from kasatune.runs.machine import peak_memory, reset_peak_memory, versions
from kasatune.runs.models import find_model
from kasatune.runs.prepare import Prepared, deterministic, prepare_saved, prepare_training, report_truncation
from kasatune.runs.quiet import quiet
from kasatune.runs.recipe import Recipe
from kasatune.runs.scoring import predictions
from kasatune.runs.silence import Silent
from kasatune.runs.trainer import PROGRESS, RunTrainer, find_device, training_arguments
from kasatune.tasks import TaskData, load_task

_SPLIT = "validation"


@dataclass
class _Run:
    """A run under way."""

    recipe: Recipe
    out: Path
    display: Display
    data: TaskData
    prepared: Prepared
    seconds: dict[str, float]
    counts: tuple[int, int]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        return self.out / WORK

    @property
    def history(self) -> History:
        return History(self.out / HISTORY)

    @property
    def title(self) -> str:
        return f"{self.recipe.method.name} on {self.data.name}"


@dataclass(frozen=True)
class _Outcome:
    """The rule that selected the saved state, and what was measured of it and of the last state in training."""

    rule: str
    selected: dict[str, Any]
    last: dict[str, Any]


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    display: Display | None = None,
) -> Path:
    """Train what `recipe` says and write a run directory.

    Ctrl-C stops at the next optimizer step: what was reached is saved and can be used and resumed, and
    KeyboardInterrupt is raised.

    Args:
        recipe: checked.
        out: the run directory; must be empty or not exist yet, unless one of the next two says otherwise.
        resume: go on with the run that `out` holds; with nothing there, begin it.
        overwrite: begin anew, in the place of what an earlier run wrote to `out`.
        display: is told the progress; None for nobody.

    Returns:
        `out`.

    Raises:
        InputError: recipe, data, model or output is wrong; nothing has been written then.
        DivergedError: the loss or its gradient became NaN or infinite; the last good state is saved.
        WorkError: a file could not be written.
    """
    out, display = Path(out), display or Silent()
    directory.check_output(out, recipe, resume=resume, overwrite=overwrite)
    find_device(recipe.training)
    find_model(recipe.model.name)
    if resume and directory.is_finished(out):
        display.message(f"{out} is finished already; nothing is left to do")
        return out
    with quiet(), deterministic():
        run = _begin(recipe, out, display)
        try:
            directory.begin(out, recipe, resume=resume)
            with Interrupt(
                lambda: display.message("stopping after this step; Ctrl-C again stops at once")
            ) as interrupt:
                fitted = run.prepared.method.fitted
                _finish(run, _fit(run) if fitted else _train(run, interrupt, resume=resume))
            if interrupt.requested:
                raise KeyboardInterrupt
        except OSError as fault:
            raise WorkError(f"{out}: {fault.strerror or fault} ({fault.filename or 'while writing'})") from fault
        finally:
            display.finish()
    return out


def _begin(recipe: Recipe, out: Path, display: Display) -> _Run:
    start = time.perf_counter()
    reset_peak_memory()
    data = load_task(recipe.task)
    for note in data.notes:
        display.message(note)
    prepared = prepare_training(recipe, data)
    seconds = {"load": time.perf_counter() - start}
    return _Run(recipe, out, display, data, prepared, seconds, prepared.parameter_counts())


def _fit(run: _Run) -> _Outcome:
    """The methods that compute their weights in one go."""
    start = time.perf_counter()
    model, method = run.prepared.model, run.prepared.method
    run.display.start(1, run.title)
    examples = run.prepared.encode(run.data, "train")
    report_truncation(run.display, "train", examples, run.recipe.task.max_length)
    before = {name for name, _ in model.named_parameters()}
    chosen = method.fit(model, run.prepared.logits(examples), examples.labels, run.recipe.training.seed)
    run.counts = (0, sum(p.numel() for name, p in model.named_parameters() if name not in before))
    run.details = {"fit": dict(chosen)}
    run.seconds["train"] = time.perf_counter() - start
    run.display.step(1, 0.0, None, None)
    _save(run)
    state = {"epoch": 0.0, "step": 0, "metrics": {}}
    return _Outcome("fitted", state, state)


def _train(run: _Run, interrupt: Interrupt, *, resume: bool) -> _Outcome:
    """The methods that learn by gradient steps."""
    checkpoint = _last_checkpoint(run.work) if resume else None
    run.history.rewind(_step(checkpoint) if checkpoint else -1)
    trainer, keeper = _trainer(run, interrupt)
    if checkpoint:
        keeper.progress = Progress(**json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8")))
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if keeper.stopped:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        _stop(run, keeper, trainer, "interrupted")
        raise
    except DivergedError:
        _stop(run, keeper, trainer, "diverged")
        raise
    if keeper.best_state:
        _put_state(run, keeper.best_state)
    _save(run, initial_sigma=_initial_sigma(run.history))
    run.seconds |= {"train": keeper.progress.train_seconds, "evaluate": keeper.progress.evaluate_seconds}
    best, last = keeper.progress.best or {}, keeper.progress.last or {}
    rule = run.recipe.training.select
    return _Outcome(rule, best if rule == "best" else last, last)


def _trainer(run: _Run, interrupt: Interrupt) -> tuple[RunTrainer, Keeper]:
    prepared, section = run.prepared, run.recipe.training
    examples = {split: prepared.encode(run.data, split) for split in ("train", _SPLIT)}
    for split, rows in examples.items():
        report_truncation(run.display, split, rows, run.recipe.task.max_length)
    keeper = Keeper(
        model=prepared.model,
        method=prepared.method,
        score=lambda: prepared.score(examples[_SPLIT], run.data),
        primary=run.data.primary,
        keep_best=section.select == "best",
        folder=run.work,
        history=run.history,
        display=run.display,
        interrupt=interrupt,
    )
    trainer = RunTrainer(
        model=prepared.model,
        args=training_arguments(section, run.work),
        train_dataset=examples["train"],
        eval_dataset=examples[_SPLIT],
        data_collator=prepared.collate,
        callbacks=[*prepared.method.callbacks(prepared.model, run.recipe.method), keeper],
        new_modules=prepared.base.new_modules,
        head_learning_rate=section.head_learning_rate,
        scores=keeper.evaluate,
        progress=keeper.snapshot,
    )
    run.display.start(_total_steps(run.recipe, len(examples["train"])), run.title)
    return trainer, keeper


def _total_steps(recipe: Recipe, rows: int) -> int:
    if recipe.training.max_steps is not None:
        return recipe.training.max_steps
    return math.ceil(recipe.training.epochs * math.ceil(rows / recipe.training.batch_size))


def _stop(run: _Run, keeper: Keeper, trainer: RunTrainer, why: str) -> None:
    """Leave a run directory that can be used, of a run that did not come to its end."""
    state = {"epoch": round(trainer.state.epoch or 0.0, 6), "step": trainer.state.global_step, "metrics": {}}
    selected, rule = state, "last"
    if keeper.best_state:
        _put_state(run, keeper.best_state)
        selected, rule = keeper.progress.best or state, "best"
    elif not all(bool(p.isfinite().all()) for p in trainable(run.prepared.model).values()):
        checkpoint = _last_checkpoint(run.work)
        if checkpoint is None:
            run.display.message("no state before the fault was saved: the run directory holds no adapter")
            return
        _put_state(run, checkpoint / "model.safetensors")
        selected = {**state, "step": _step(checkpoint)}
    _save(run)
    progress = keeper.progress
    run.seconds |= {"train": progress.train_seconds, "evaluate": progress.evaluate_seconds}
    outcome = _Outcome(rule, selected, progress.last or state)
    write_json(
        run.out / METRICS, _metrics(run, outcome, selected["metrics"]) | {why: True, "stopped_at": state["step"]}
    )


def _finish(run: _Run, outcome: _Outcome) -> None:
    """Load the saved files as anyone would, score them, and write what came out."""
    start = time.perf_counter()
    run.prepared = prepare_saved(run.recipe, run.data.kind, run.data.label_names, run.out)
    examples = run.prepared.encode(run.data, _SPLIT)
    scores = run.prepared.score(examples, run.data)
    seconds = time.perf_counter() - start
    run.seconds["evaluate"] = run.seconds.get("evaluate", 0.0) + seconds
    if run.prepared.method.fitted:
        run.history.add("evaluate", step=0, epoch=0.0, split=_SPLIT, metrics=scores.metrics, seconds=round(seconds, 3))
        outcome = replace(
            outcome,
            selected={**outcome.selected, "metrics": scores.metrics},
            last=outcome.last | {"metrics": scores.metrics},
        )
        run.display.evaluated(0.0, scores.metrics)
    write_json(run.out / PREDICTIONS, predictions(_SPLIT, scores), indent=None)
    write_json(run.out / METRICS, _metrics(run, outcome, scores.metrics))
    directory.remove(run.work)


def _metrics(run: _Run, outcome: _Outcome, metrics: dict[str, float]) -> dict[str, Any]:
    """The content of metrics.json."""
    trained, head = run.counts
    return {
        "task": run.data.name,
        "kind": run.data.kind,
        "method": run.recipe.method.name,
        "split": _SPLIT,
        "metrics": metrics,
        "selected": {"rule": outcome.rule, **outcome.selected},
        "last": outcome.last,
        "trainable_parameters": trained,
        "head_parameters": head,
        "new_modules": list(run.prepared.base.new_modules),
        "label_names": list(run.data.label_names) if run.data.label_names else None,
        "text_fields": run.data.text_fields,
        "data_source": run.data.source,
        "data_sha256": run.data.sha256,
        "seconds": {name: round(value, 3) for name, value in run.seconds.items()},
        "peak_memory_bytes": peak_memory(),
        "versions": versions(),
        **run.details,
    }


def _save(run: _Run, initial_sigma: dict[str, list[float]] | None = None) -> None:
    """Put the model as it is into the run directory, and its spectrum where the initial sigma is given."""
    staged = run.work / "staged"
    directory.remove(staged)
    staged.mkdir(parents=True)
    run.prepared.method.save(run.prepared.model, staged, run.recipe.model.name)
    layers = run.prepared.method.spectrum(run.prepared.model, initial_sigma) if initial_sigma is not None else []
    if layers:
        write_json(staged / SPECTRUM, {"layers": layers}, indent=None)
    directory.publish(staged, run.out)


def _put_state(run: _Run, path: Path) -> None:
    run.prepared.model.load_state_dict(load_file(path), strict=False)


def _initial_sigma(history: History) -> dict[str, list[float]]:
    return next((event["layers"] for event in history.events() if event["event"] == "sigma"), {})


def _last_checkpoint(work: Path) -> Path | None:
    """The latest checkpoint that was written to its end: the Trainer writes its state last."""
    found = [path for path in work.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(found, key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])

"""Train a recipe and write a run directory; `train` is the entry point, from the command line and from Python."""

from __future__ import annotations

import json
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from kasatune.data.tasks.dataset import TaskData
from kasatune.distributed.fsdp import (
    deepspeed_requested,
    shard_model,
    sharding_requested,
    without_accelerate_fsdp,
)
from kasatune.distributed.process_group import broadcast_from_first, is_main, world_size
from kasatune.errors import DataError, DivergedError, InputError, ModelError
from kasatune.evaluation.mixture import routing_by_part
from kasatune.evaluation.packed_rows import require_packable
from kasatune.evaluation.report_encoding import count_cut, report_chat_template, report_cut
from kasatune.evaluation.starting_adapter import read_starting_adapter
from kasatune.evaluation.task_model import TaskModel, deterministic
from kasatune.io.atomic import remove
from kasatune.io.environment import reset_peak_memory
from kasatune.io.library_noise import quiet
from kasatune.io.progress import NullProgress, ProgressReporter, progress_listener
from kasatune.io.run_layout import WORK
from kasatune.kasa.truncation.compute_tails import decompositions_shared
from kasatune.models.load import Pretrained, find_pretrained
from kasatune.models.moved_base import base_errors, with_base
from kasatune.models.precision import with_precision
from kasatune.recipes.schema import Recipe
from kasatune.runs import directory
from kasatune.runs.metrics import is_finished
from kasatune.runs.provenance import pinned, pinned_as_started
from kasatune.training.callback import Progress, RunCallback
from kasatune.training.checkpoint_contents import (
    PROGRESS,
    WEIGHTS,
    process_count,
    save_trained_parameters,
)
from kasatune.training.checkpoints import latest_valid, read_manifest, remove_later, step_of
from kasatune.training.deepspeed_config import require_one_dtype
from kasatune.training.engines.bilevel import held_back_fault
from kasatune.training.engines.engine import Engine
from kasatune.training.engines.run_trainer import RunHooks, RunTrainer
from kasatune.training.plan import NO_WARMUP, require_feasible
from kasatune.training.preflight import check_setup
from kasatune.training.reference import add_reference
from kasatune.training.run import SPLIT, TRAIN_SPLIT, DataProvider, Outcome, Run, work_errors
from kasatune.training.signals import Interrupt
from kasatune.training.starting_loss import record_start
from kasatune.training.stopped_run import gather_state, prepare_method, reload_unsharded, save_stopped
from kasatune.wording import counted

_ANEW = ", or start again with --overwrite"
_STOPPING = "stopping after this step; Ctrl-C again stops at once"


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    base: str | None = None,
    display: ProgressReporter | None = None,
    data_provider: DataProvider | None = None,
) -> Path:
    """Train `recipe` and write a run directory.

    Ctrl-C stops at the next optimizer step: the state is saved, can be used and resumed, and KeyboardInterrupt is
    raised.

    Args:
        recipe: a validated recipe.
        out: the run directory; must be empty or not exist, unless `resume` or `overwrite` is given.
        resume: continue the run in `out`; start a new one if there is none.
        overwrite: start again, replacing what an earlier run wrote to `out`.
        base: with `resume`, where the base model is now, if not where the recipe says; it must be the same model.
        display: receives the progress; None for no output.
        data_provider: provides the rows and measures the trained model; None to read the rows that the recipe names.

    Returns:
        `out`.

    Raises:
        InputError: the recipe, the data, the model or the output is invalid, or the run would fail. Nothing has been
            written in that case.
        DivergedError: the loss or its gradient became NaN or infinite; the last good state is saved.
        WorkError: a file could not be written, or the GPU ran out of memory.
    """
    out = Path(out)
    if base is not None and not resume:
        raise InputError("base: only for a run that is resumed; otherwise name the model as model.name")
    reporter: ProgressReporter = display if display is not None and is_main() else NullProgress()
    with ExitStack() as stack:
        stack.callback(reporter.finish)
        if is_main():
            with work_errors(out):
                stack.enter_context(directory.reserved(out, recipe, resume=resume, overwrite=overwrite))
        if resume:
            recipe = pinned_as_started(recipe, out)
            if is_finished(out):
                if is_main():
                    remove(out / WORK)  # a kill may have come just before the run removed it
                reporter.message(f"{out} is already finished; nothing to do")
                return out
        recipe, chosen = with_precision(recipe)
        if chosen is not None:
            reporter.message(chosen)
        stack.enter_context(quiet(reporter.message))
        stack.enter_context(deterministic())
        run, engine, arguments = _set_up(recipe, out, reporter, data_provider or DataProvider(), base, resume=resume)
        interrupt = stack.enter_context(Interrupt(lambda: reporter.message(_STOPPING)))
        with work_errors(out):
            if is_main():
                directory.begin(out, run.recipe, resume=resume)
            if run.task_model.method.info.fitted:
                outcome = _fit(run)
            else:
                outcome = _train(run, engine, arguments, interrupt, resume=resume)
            if is_main():
                run.finish(outcome)
        if interrupt.requested:
            raise KeyboardInterrupt
    return out


def _set_up(
    recipe: Recipe, out: Path, display: ProgressReporter, data_provider: DataProvider, base: str | None, *, resume: bool
) -> tuple[Run, Engine, TrainingArguments]:
    """Do everything that can fail because of the input, cheapest first, before anything is written."""
    start = time.perf_counter()
    reset_peak_memory()
    setup = check_setup(recipe, out / WORK)
    device, engine, arguments = setup.device, setup.engine, setup.arguments
    with base_errors(base, **({} if resume else {"remedy": ""})):
        pretrained = find_pretrained(with_base(recipe, base).model)
    plan = require_feasible(recipe, pretrained)
    data = data_provider.data(recipe)
    for note in (*plan.notes, *data.notes):
        display.message(note)
    task_model = _load_model(with_base(recipe, base), pretrained, data, device, display)
    if deepspeed_requested():
        require_one_dtype(task_model.model, recipe)
    engine.check_model(task_model.model)
    if recipe.training.packing:
        require_packable(task_model.model)
    report_chat_template(display, task_model)
    examples = {split: data_provider.examples(task_model, data, split) for split in (TRAIN_SPLIT, SPLIT)}
    fault = held_back_fault(task_model.method, recipe.method, len(examples[TRAIN_SPLIT]), recipe.training.batch_size)
    if fault is not None:
        raise InputError(fault)
    rows_cut = {split: count_cut(task_model, rows) for split, rows in examples.items()}
    for split, counts in rows_cut.items():
        report_cut(display, split, counts, recipe.task.max_length)
    attach = task_model.attach_seconds
    run = Run(
        recipe=pinned(
            recipe,
            pretrained.revision if base is None else None,
            data.pins,
            {part.name: part.pins for part in data.parts},
        ),
        out=out,
        display=display,
        device=device,
        data=data,
        task_model=task_model,
        examples=examples,
        seconds={"load": time.perf_counter() - start - attach, "attach": attach},
        counts=task_model.parameter_counts(),
        data_provider=data_provider,
        details={"rows_cut": rows_cut},
        base=base,
    )
    return run, engine, arguments


def _load_model(
    recipe: Recipe, pretrained: Pretrained, data: TaskData, device: torch.device, display: ProgressReporter
) -> TaskModel:
    with progress_listener(display.progress), decompositions_shared():
        return TaskModel.for_training(recipe, data, pretrained=pretrained, device=device, on_cpu=sharding_requested())


def _fit(run: Run) -> Outcome:
    """Compute the weights of a method that needs no gradient steps."""
    start = time.perf_counter()
    model, method, examples = run.task_model.model, run.task_model.method, run.examples[TRAIN_SPLIT]
    run.display.start(1, run.title)
    before = {name for name, _ in model.named_parameters()}
    choices = method.fit(model, run.task_model.logits(examples), examples.labels, run.recipe.training.seed)
    run.counts = (0, sum(p.numel() for name, p in model.named_parameters() if name not in before))
    run.details["fit"] = dict(choices)
    run.seconds["train"] = time.perf_counter() - start
    run.display.step(1, 0.0, None, None)
    if is_main():
        run.save()
    state = {"epoch": 0.0, "step": 0}
    return Outcome("fitted", state, state)


def _train(run: Run, engine: Engine, arguments: TrainingArguments, interrupt: Interrupt, *, resume: bool) -> Outcome:
    """Train by gradient steps, from the latest checkpoint if a run is resumed."""
    adapter = _adapter_sha256(run)
    checkpoint = _resumable_checkpoint(run, adapter) if resume else None
    run.history.rewind(step_of(checkpoint) if checkpoint else -1)
    with decompositions_shared():
        prepare_method(run, checkpoint)
    if adapter is not None:
        run.details["adapter"] = {"name": run.recipe.model.adapter, "sha256": adapter}
    if checkpoint is None:
        run.data_provider.begin(run.task_model)
    if run.task_model.info.compares_with_reference:
        add_reference(run, resume=checkpoint is not None)
    record_start(run, resume=checkpoint is not None)
    if sharding_requested() and not deepspeed_requested():
        shard_model(run.task_model.model, run.task_model.base.model, run.device)
    callback = _make_callback(run, interrupt, adapter)
    if checkpoint:
        callback.progress = Progress(**json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8")))
    trainer = _make_trainer(run, engine, arguments, callback)
    try:
        if checkpoint and callback.out_of_patience:  # it was killed after its last step
            run.load_state(checkpoint / WEIGHTS)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if callback.stopped:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        save_stopped(run, callback, trainer, "interrupted")
        raise
    except DivergedError:
        save_stopped(run, callback, trainer, "diverged", gather_state(run, trainer))
        raise
    state = callback.best_state
    if state is None and sharding_requested():
        state = run.work / "last.safetensors"
        save_trained_parameters(run.task_model.model, state, writes=is_main())
    if is_main():
        reload_unsharded(run)
        if state:
            run.load_state(state)
        run.save(spectrum=True)
        run.data_provider.trained(run.task_model)
    progress = callback.progress
    run.seconds |= {"train": progress.train_seconds, "evaluate": progress.evaluate_seconds}
    best, last = progress.best or {}, progress.last or {}
    rule = run.recipe.training.select
    if rule == "best":
        return Outcome(rule, best, last, callback.best_scores)
    return Outcome(rule, last, last, callback.last_scores)


def _resumable_checkpoint(run: Run, adapter: str | None) -> Path | None:
    """The latest valid checkpoint, the same for every process; None if there is none.

    Raises:
        DataError: the run was started with other rows.
        ModelError: it was started with another base model, or from another adapter.
    """
    checkpoint, fault = None, None
    if is_main():
        checkpoint = latest_valid(run.work, run.display.message)
        manifest = read_manifest(checkpoint) if checkpoint else {}
        if checkpoint and manifest["data"] != run.data.sha256:
            fault = DataError(
                f"{run.data.source}: the run in {run.out} was started with other rows; restore them{_ANEW}"
            )
        elif checkpoint and (reason := _other_base(run, manifest.get("base"))):
            fault = ModelError(f"{reason}{_ANEW}")
        elif checkpoint and manifest.get("adapter") != adapter:
            fault = ModelError(
                f"model.adapter: {run.recipe.model.adapter} has changed since the run in {run.out} was started; "
                f"restore it{_ANEW}"
            )
        elif checkpoint and process_count(checkpoint) != world_size():
            run.display.message(
                f"{checkpoint.name} was written by {counted(process_count(checkpoint), 'process')} and is resumed by "
                f"{world_size()}: "
                "the order of the rows is the same, random draws such as dropout are not"
            )
    checkpoint, fault = broadcast_from_first((checkpoint, fault))
    if fault is not None:
        raise fault
    if is_main():
        remove_later(run.work, checkpoint)
    return checkpoint


def _adapter_sha256(run: Run) -> str | None:
    """SHA-256 of the adapter that training continues from; None for a new one."""
    name = run.recipe.model.adapter
    return None if name is None else read_starting_adapter(name).sha256


def _other_base(run: Run, recorded: str | None) -> str | None:
    """Why the loaded base model is not the one that the run was started with; None if it is, or if that is unknown."""
    loaded, section = run.task_model.base.fingerprint, run.recipe.model
    if recorded is None or recorded == loaded or section.quantization != "none":
        return None
    return (
        f"model.name: {run.base or section.base_name} is another model than the one with which the run in {run.out} "
        f"was started (fingerprint {loaded[:12]}, recorded {recorded[:12]}); name a copy of that one with --base MODEL"
    )


def _make_callback(run: Run, interrupt: Interrupt, adapter: str | None) -> RunCallback:
    return RunCallback(
        model=run.task_model.model,
        method=run.task_model.method,
        score=lambda: run.task_model.score(run.examples[SPLIT], run.data),
        routing_by_part=lambda: routing_by_part(run.task_model, run.examples[SPLIT]),
        evaluated=lambda epoch: run.data_provider.evaluated(run.task_model, epoch),
        primary=run.data.primary,
        keep_best=run.recipe.training.select == "best",
        folder=run.work,
        history=run.history,
        display=run.display,
        interrupt=interrupt,
        data_sha256=run.data.sha256,
        base_fingerprint=run.task_model.base.fingerprint,
        adapter_sha256=adapter,
        eval_steps=run.recipe.training.eval_steps,
        save_steps=run.recipe.training.save_steps,
        patience=run.recipe.training.patience,
        writes=is_main(),
    )


def _make_trainer(run: Run, engine: Engine, arguments: TrainingArguments, callback: RunCallback) -> RunTrainer:
    task_model, recipe = run.task_model, run.recipe
    hooks = RunHooks(
        method=task_model.method,
        settings=recipe.method,
        new_modules=task_model.base.new_modules,
        head_learning_rate=recipe.training.head_learning_rate,
        group_by_length=recipe.training.group_by_length,
        evaluate=callback.evaluate,
        progress=callback.progress_record,
        processed=callback.processed,
        step_series=callback.step_series,
        evaluation_series=callback.evaluation_series,
    )
    callbacks = [*task_model.method.callbacks(task_model.model, recipe.method), callback]
    with without_accelerate_fsdp():
        trainer = engine.make_trainer(task_model, run.examples, arguments, hooks, callbacks)
    rows: Any = trainer.train_dataset
    section = recipe.training
    steps = section.max_steps or math.ceil(section.epochs * math.ceil(len(rows) / section.batch_size))
    if steps == 1 and arguments.warmup_steps:
        arguments.warmup_steps = 0
        run.display.message(NO_WARMUP)
    run.display.start(steps, run.title)
    return trainer

"""One run: from a recipe to a run directory."""

from __future__ import annotations

import gc
import importlib
import json
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import set_seed

from kasatune import methods
from kasatune.distributed.fsdp import (
    deepspeed_requested,
    fits_on_device,
    shard_model,
    sharding_requested,
    without_accelerate_fsdp,
)
from kasatune.distributed.process_group import broadcast_from_first, is_main, world_size
from kasatune.distributed.zero3 import full_numel
from kasatune.errors import DataError, DivergedError
from kasatune.evaluation.task_model import TaskModel, deterministic, report_truncation
from kasatune.io.atomic import remove
from kasatune.io.environment import reset_peak_memory
from kasatune.io.library_noise import quiet
from kasatune.io.locks import LOCK, directory_lock
from kasatune.io.progress import NullProgress, ProgressReporter, progress_listener
from kasatune.kasa.truncation.compute_tails import decompositions_shared
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.models.device import find_device
from kasatune.models.load import find_model
from kasatune.recipes.schema import Recipe
from kasatune.runs import directory
from kasatune.runs.provenance import as_begun, pinned
from kasatune.training.callback import Keeper, Progress
from kasatune.training.checkpoints import forget_others, last_whole, read_seal, step_of
from kasatune.training.data_provider import Supplies
from kasatune.training.deepspeed import require_one_dtype, require_suitable
from kasatune.training.run import SPLIT, Outcome, Run, failures_told
from kasatune.training.signals import Interrupt
from kasatune.training.trainer import METHOD, PROGRESS, WEIGHTS, RunSteps, RunTrainer, save_state, training_arguments
from kasatune.training.training_state import saved_processes

_STOPPING = "stopping after this step; Ctrl-C again stops at once"


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    display: ProgressReporter | None = None,
    supplies: Supplies | None = None,
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
        supplies: where the rows come from and what is measured at the end; None for what the recipe says.

    Returns:
        `out`.

    Raises:
        InputError: recipe, data, model or output is wrong; nothing has been written then.
        DivergedError: the loss or its gradient became NaN or infinite; the last good state is saved.
        WorkError: a file could not be written, or the GPU's memory was exhausted.
    """
    out = Path(out)
    shown: ProgressReporter = display if display is not None and is_main() else NullProgress()
    if is_main():
        directory.check_output(out, recipe, resume=resume, overwrite=overwrite)
    if resume:
        recipe = as_begun(recipe, out)
    if sharding_requested() and deepspeed_requested():
        require_suitable(recipe, methods.load(recipe.method.name))
    find_device(recipe.training)
    find_model(recipe.model.name)
    if resume and directory.is_finished(out):
        if is_main():
            for name in (directory.WORK, LOCK):
                remove(out / name)  # a kill may have come just before the run removed them itself
        shown.message(f"{out} is finished already; nothing is left to do")
        return out
    with quiet(shown.message), deterministic():
        run = _begin(recipe, out, shown, supplies or Supplies())
        try:
            with failures_told(out), Interrupt(lambda: shown.message(_STOPPING)) as interrupt, ExitStack() as stack:
                if is_main():
                    out.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(directory_lock(out))
                    # Loading took a while, in which another process may have come and gone.
                    directory.check_output(out, run.recipe, resume=resume, overwrite=overwrite, held=True)
                    directory.begin(out, run.recipe, resume=resume)
                outcome = _fit(run) if run.prepared.method.info.fitted else _train(run, interrupt, resume=resume)
                if is_main():
                    run.finish(outcome)
            if interrupt.requested:
                raise KeyboardInterrupt
        finally:
            shown.finish()
    return out


def _begin(recipe: Recipe, out: Path, display: ProgressReporter, supplies: Supplies) -> Run:
    """All that can fail for a fault of the input, before anything is written."""
    start = time.perf_counter()
    reset_peak_memory()
    training_arguments(recipe.training, out)
    # An extra that is not installed is told before anything is read.
    sft: Any = importlib.import_module("kasatune.training.sft") if recipe.task.name == "instruction" else None
    data = supplies.data(recipe)
    for note in data.notes:
        display.message(note)
    with progress_listener(display.progress), decompositions_shared():
        prepared = TaskModel.for_training(recipe, data, on_cpu=sharding_requested())
    if deepspeed_requested():
        require_one_dtype(prepared.model, recipe)
    if sft is not None:
        sft.require_plain_output(prepared.model)
    examples = {split: supplies.examples(prepared, data, split) for split in ("train", SPLIT)}
    for split, rows in examples.items():
        report_truncation(display, split, rows, recipe.task.max_length)
    attach = prepared.attach_seconds
    seconds = {"load": time.perf_counter() - start - attach, "attach": attach}
    recipe = pinned(recipe, prepared.base.revision, data.pins)
    return Run(recipe, out, display, data, prepared, examples, seconds, prepared.parameter_counts(), supplies)


def _fit(run: Run) -> Outcome:
    """The methods that compute their weights in one go."""
    start = time.perf_counter()
    model, method, examples = run.prepared.model, run.prepared.method, run.examples["train"]
    run.display.start(1, run.title)
    before = {name for name, _ in model.named_parameters()}
    chosen = method.fit(model, run.prepared.logits(examples), examples.labels, run.recipe.training.seed)
    run.counts = (0, sum(p.numel() for name, p in model.named_parameters() if name not in before))
    run.details = {"fit": dict(chosen)}
    run.seconds["train"] = time.perf_counter() - start
    run.display.step(1, 0.0, None, None)
    if is_main():
        run.save()
    state = {"epoch": 0.0, "step": 0}
    return Outcome("fitted", state, state)


def _train(run: Run, interrupt: Interrupt, *, resume: bool) -> Outcome:
    """The methods that learn by gradient steps."""
    checkpoint = _found_checkpoint(run) if resume else None
    run.history.rewind(step_of(checkpoint) if checkpoint else -1)
    _ready(run, checkpoint)
    if sharding_requested() and not deepspeed_requested():
        shard_model(run.prepared.model, run.prepared.base.model, find_device(run.recipe.training))
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
        _stop(run, keeper, trainer, "diverged", _gathered(run, trainer))
        raise
    state = keeper.best_state
    if state is None and sharding_requested():
        state = run.work / "last.safetensors"
        save_state(run.prepared.model, state, writes=is_main())
    if is_main():
        _unshard(run)
        if state:
            run.put_state(state)
        run.save(spectrum=True)
    progress = keeper.progress
    run.seconds |= {"train": progress.train_seconds, "evaluate": progress.evaluate_seconds}
    best, last = progress.best or {}, progress.last or {}
    rule = run.recipe.training.select
    if rule == "best":
        return Outcome(rule, best, last, keeper.best_scored)
    return Outcome(rule, last, last, keeper.last_scored)


def _found_checkpoint(run: Run) -> Path | None:
    """The checkpoint to go on from, the same for every process.

    Raises:
        DataError: the run was begun with other rows.
    """
    found, fault = None, ""
    if is_main():
        found = last_whole(run.work, run.display.message)
        if found and read_seal(found)["data"] != run.data.sha256:
            fault = f"{run.data.source}: the run in {run.out} was begun with other rows; bring those back"
        elif found and saved_processes(found) != world_size():
            run.display.message(
                f"{found.name} was written by {saved_processes(found)} processes and is resumed by {world_size()}: "
                "the order of the rows stays, random draws such as dropout do not"
            )
    found, fault = broadcast_from_first((found, fault))
    if fault:
        raise DataError(f"{fault}, or begin anew with --overwrite")
    if is_main():
        forget_others(run.work, found)
    return found


def _ready(run: Run, checkpoint: Path | None) -> None:
    """Do what the method needs before the first step, or before that after a checkpoint."""
    prepared = run.prepared
    set_seed(run.recipe.training.seed)
    prepared.method.prepare(prepared.model.eval(), run.recipe.method, prepared.batches(run.examples["train"]))
    if checkpoint:
        prepared.method.restore_training_state(prepared.model, load_file(checkpoint / METHOD))


def _unshard(run: Run) -> None:
    """Have the model whole in this process again, its trained parameters yet to be put in."""
    if sharding_requested():
        size = sum(full_numel(p) * p.element_size() for p in run.prepared.model.parameters())
        run.prepared = None  # type: ignore[assignment]
        gc.collect()
        run.stays_in_memory = not fits_on_device(size, find_device(run.recipe.training))
        run.prepared = TaskModel.for_training(run.recipe, run.data, on_cpu=run.stays_in_memory)
        _ready(run, last_whole(run.work, run.display.message))


def _trainer(run: Run, interrupt: Interrupt) -> tuple[RunSteps, Keeper]:
    prepared, section = run.prepared, run.recipe.training
    keeper = Keeper(
        model=prepared.model,
        method=prepared.method,
        score=lambda: prepared.score(run.examples[SPLIT], run.data),
        primary=run.data.primary,
        keep_best=section.select == "best",
        folder=run.work,
        history=run.history,
        display=run.display,
        interrupt=interrupt,
        data_sha256=run.data.sha256,
        writes=is_main(),
    )
    common: dict[str, Any] = {
        "model": prepared.model,
        "callbacks": [*prepared.method.callbacks(prepared.model, run.recipe.method), keeper],
        "method": prepared.method,
        "settings": run.recipe.method,
        "new_modules": prepared.base.new_modules,
        "head_learning_rate": section.head_learning_rate,
        "scores": keeper.evaluate,
        "progress": keeper.snapshot,
    }
    with without_accelerate_fsdp():
        trainer = _supervised(run, common) if run.recipe.task.name == "instruction" else _plain(run, common)
    rows: Any = trainer.train_dataset
    steps = section.max_steps or math.ceil(section.epochs * math.ceil(len(rows) / section.batch_size))
    run.display.start(steps, run.title)
    return trainer, keeper


def _plain(run: Run, common: dict[str, Any]) -> RunSteps:
    return RunTrainer(
        args=training_arguments(run.recipe.training, run.work),
        train_dataset=run.examples["train"],
        eval_dataset=run.examples[SPLIT],
        data_collator=run.prepared.collate,
        **common,
    )


def _supervised(run: Run, common: dict[str, Any]) -> RunSteps:
    from kasatune.training.sft import make_sft_trainer

    return make_sft_trainer(run.recipe, run.work, run.examples, processing_class=run.prepared.base.tokenizer, **common)


def _gathered(run: Run, trainer: RunSteps) -> Path | None:
    """Where the weights before a step that all processes left out are, of a sharded model; None where not sharded."""
    if not sharding_requested() or trainer.undo_to is not None:
        return None
    path = run.work / "last.safetensors"
    save_state(run.prepared.model, path, writes=is_main())
    return path


def _stop(run: Run, keeper: Keeper, trainer: RunSteps, why: str, gathered: Path | None = None) -> None:
    """Leave a run directory that can be used, of a run that did not come to its end."""
    if not is_main():
        return
    step = trainer.state.global_step
    good_step = step if trainer.undo_to is None else trainer.undo_to
    selected = {"epoch": round(trainer.state.epoch or 0.0, 6), "step": good_step, "metrics": {}}
    last, rule = keeper.progress.last or selected, "last"
    undone = trainer.undo_to is None or keeper.undo_step()
    finite = _is_finite(run, gathered)
    state = gathered if finite else None
    if keeper.best_state and keeper.progress.best:
        state, selected, rule = keeper.best_state, keeper.progress.best, "best"
    elif not (undone and finite):
        checkpoint = last_whole(run.work, run.display.message)
        if checkpoint is not None:
            state, selected = checkpoint / WEIGHTS, last
        elif finite:  # it may have been the rows' fault
            run.display.message(f"no state before step {step} was saved: its weights are kept, which gave the fault")
            selected["step"] = step
        else:
            run.display.message("no state before the fault was saved: the run directory holds no adapter")
            return
    _unshard(run)
    if state:
        run.put_state(state)
    run.save()
    progress = keeper.progress
    run.seconds |= {"train": progress.train_seconds, "evaluate": progress.evaluate_seconds}
    run.write_metrics(Outcome(rule, selected, last), selected["metrics"], **{why: True, "stopped_at": step})


def _is_finite(run: Run, gathered: Path | None) -> bool:
    """Whether the trained weights are; of a sharded model those that were gathered, and none where none were."""
    if sharding_requested():
        return gathered is not None and all(bool(tensor.isfinite().all()) for tensor in load_file(gathered).values())
    return all(bool(parameter.isfinite().all()) for parameter in trainable(run.prepared.model).values())

"""Save what a run that was interrupted or diverged has learnt, and load a sharded model again in one process."""

from __future__ import annotations

import gc
from pathlib import Path

from safetensors.torch import load_file
from transformers import set_seed

from kasatune.distributed.fsdp import (
    fits_on_device,
    sharding_requested,
)
from kasatune.distributed.process_group import is_main
from kasatune.distributed.zero3 import full_numel
from kasatune.evaluation.starting_adapter import prepare
from kasatune.evaluation.task_model import TaskModel
from kasatune.kasa.truncation.compute_tails import decompositions_shared
from kasatune.models.moved_base import with_base
from kasatune.training.callback import RunCallback
from kasatune.training.checkpoint_contents import (
    METHOD_STATE,
    WEIGHTS,
    save_trained_parameters,
)
from kasatune.training.checkpoints import latest_valid
from kasatune.training.divergence import weights_are_finite
from kasatune.training.engines.run_trainer import RunTrainer
from kasatune.training.run import TRAIN_SPLIT, Outcome, Run


def prepare_method(run: Run, checkpoint: Path | None) -> None:
    """Prepare the method for the first step, and restore its state from a checkpoint."""
    task_model, method = run.task_model, run.task_model.method
    set_seed(run.recipe.training.seed)
    batches = task_model.batches(run.examples[TRAIN_SPLIT])
    line = prepare(task_model, batches)
    if line is not None and is_main():
        run.display.message(line)
    if checkpoint:
        method.restore_training_state(task_model.model, load_file(checkpoint / METHOD_STATE))


def gather_state(run: Run, trainer: RunTrainer) -> Path | None:
    """The weights before a step that all processes skipped, gathered from their shards; None if not sharded."""
    if not sharding_requested() or trainer.undo_to is not None:
        return None
    path = run.work / "last.safetensors"
    save_trained_parameters(run.task_model.model, path, writes=is_main())
    return path


def save_stopped(
    run: Run, callback: RunCallback, trainer: RunTrainer, reason: str, gathered: Path | None = None
) -> None:
    """Leave a usable run directory of a run that stopped early, with its best, last or last good state.

    Args:
        run: the run.
        callback: its callback.
        trainer: its trainer.
        reason: "interrupted" or "diverged"; becomes a key of metrics.json.
        gathered: file with the gathered weights of a sharded model.
    """
    if not is_main():
        return
    step = trainer.state.global_step
    good_step = step if trainer.undo_to is None else trainer.undo_to
    selected = {"epoch": round(trainer.state.epoch or 0.0, 6), "step": good_step, "metrics": {}}
    last, rule = callback.progress.last or selected, "last"
    undone = trainer.undo_to is None or callback.undo_step()
    finite = weights_are_finite(run.task_model.model, gathered)
    state = gathered if finite else None
    if callback.best_state and callback.progress.best:
        state, selected, rule = callback.best_state, callback.progress.best, "best"
    elif not (undone and finite):
        checkpoint = latest_valid(run.work, run.display.message)
        if checkpoint is not None:
            state, selected = checkpoint / WEIGHTS, last
        elif finite:  # the rows may be at fault
            run.display.message(f"no state before step {step} was saved: the weights that caused the fault are kept")
            selected["step"] = step
        else:
            run.display.message("no state before the fault was saved: the run directory holds no adapter")
            return
    reload_unsharded(run)
    if state:
        run.load_state(state)
    run.save()
    progress = callback.progress
    run.seconds |= {"train": progress.train_seconds, "evaluate": progress.evaluate_seconds}
    run.write_metrics(Outcome(rule, selected, last), selected["metrics"], **{reason: True, "stopped_at": step})


def reload_unsharded(run: Run) -> None:
    """Load a sharded model again, unsharded, in this process; its trained parameters must be loaded afterwards."""
    if not sharding_requested():
        return
    size = sum(full_numel(p) * p.element_size() for p in run.task_model.model.parameters())
    del run.task_model
    gc.collect()
    run.on_cpu = not fits_on_device(size, run.device)
    with decompositions_shared(False):  # the other processes take no part
        run.task_model = TaskModel.for_training(
            with_base(run.recipe, run.base), run.data, device=run.device, on_cpu=run.on_cpu
        )
        prepare_method(run, latest_valid(run.work, run.display.message))

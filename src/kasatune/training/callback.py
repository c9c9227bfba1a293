"""What a run keeps while it trains: its history, its best state, and the reasons to stop early."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainerCallback

from kasatune.distributed.fsdp import sharding_requested
from kasatune.distributed.gather_scatter import gather_full
from kasatune.distributed.zero3 import gathered_parameters
from kasatune.evaluation.scoring import Scores
from kasatune.io.progress import ProgressReporter
from kasatune.methods.shared.method import Method
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.runs.directory import History
from kasatune.training.cached_scores import Scored
from kasatune.training.checkpoints import best_states, folder_of, seal
from kasatune.training.signals import Interrupt
from kasatune.training.trainer import diverged, save_state
from kasatune.training.training_state import random_kept

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

SAVE_SECONDS = 600.0
"""A checkpoint within an epoch is written when the last one is longer ago."""
_REMEMBERED = 2**24
"""Up to so many trained numbers are copied before each step; of more, the last checkpoint has to do."""
LOWER_IS_BETTER = ("loss", "mse", "perplexity")


@dataclass
class Progress:
    """How far a run has come; saved with every checkpoint.

    Attributes:
        best: epoch, step and metrics of the best evaluation so far; None before the first.
        last: the same of the latest evaluation.
        train_seconds: time spent in training, evaluations left out.
        evaluate_seconds: time spent in evaluations.
    """

    best: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0


@dataclass
class Keeper(TrainerCallback):
    """Writes history.jsonl, keeps the best state, and stops on request or when the gradient is not finite.

    Attributes:
        model: what is trained.
        method: how; gives penalties and singular values.
        score: evaluates the model as it is.
        primary: name of the score that makes an epoch the best; higher is better unless it is a loss.
        keep_best: whether the state of the best epoch is written to `folder`.
        folder: for best-STEP.safetensors.
        history: where events go.
        display: who is told.
        interrupt: who asks to stop.
        data_sha256: of the rows that the run is trained on.
        writes: false for a process that shares the run with the one that writes.
        progress: how far the run has come.
        stopped: whether the run was stopped on request, at a step that it can be resumed from.
        best_scored: the scores behind `progress.best`, where this process measured them.
        last_scored: the same of `progress.last`.
    """

    model: nn.Module
    method: Method
    score: Callable[[], Scores]
    primary: str
    keep_best: bool
    folder: Path
    history: History
    display: ProgressReporter
    interrupt: Interrupt
    data_sha256: str = ""
    writes: bool = True
    progress: Progress = field(default_factory=Progress)
    stopped: bool = False
    best_scored: Scored | None = None
    last_scored: Scored | None = None

    def __post_init__(self) -> None:
        self._clock = time.perf_counter()
        self._saved = time.monotonic()
        self._place = (0, 0.0)
        self._before: list[torch.Tensor] | None = None

    @property
    def best_state(self) -> Path | None:
        """The file that holds the best state so far; None where there is none."""
        best = self.progress.best
        return self.folder / f"best-{best['step']}.safetensors" if self.keep_best and best is not None else None

    def snapshot(self) -> dict[str, Any]:
        """`progress` as plain data, for a checkpoint."""
        self._tick()
        return asdict(self.progress)

    def evaluate(self) -> dict[str, float]:
        """The scores of the model as it is, recorded."""
        self._tick()
        with random_kept():
            scores = self.score()
        seconds = time.perf_counter() - self._clock
        self._clock += seconds
        self.progress.evaluate_seconds += seconds
        step, epoch = self._place
        self.history.add(
            "evaluate", step=step, epoch=epoch, split="validation", metrics=scores.metrics, seconds=round(seconds, 3)
        )
        self._record_sigma()
        found = {"epoch": epoch, "step": step, "metrics": scores.metrics}
        self.progress.last = found
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        self.last_scored = Scored.of(self.model, scores) if alone and scores.logits is not None else None
        if is_better(scores.metrics, self.progress.best and self.progress.best["metrics"], self.primary):
            self.progress.best, self.best_scored = found, self.last_scored
            if self.best_state:
                save_state(self.model, self.best_state, writes=self.writes)
        self.display.evaluated(epoch, scores.metrics)
        return scores.metrics

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock; record the sigma that training begins with."""
        self._clock = time.perf_counter()
        self._saved = time.monotonic()
        if state.global_step == 0:
            self._record_sigma()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """Stop before a gradient that is not finite reaches the weights; ZeRO-3 has left out its step already.

        Raises:
            DivergedError: it is not, outside float16, whose loss scaling deals with it.
        """
        self._remember()
        gradients = [p.grad for p in trainable(self.model).values() if p.grad is not None]
        if getattr(optimizer, "step_was_skipped", False) and not args.fp16:
            raise diverged("the gradient", state.global_step + 1)
        if args.fp16 or not gradients:
            return
        # The Trainer has scaled all gradients by their norm already: which one was the first cannot be told.
        if not torch.isfinite(gather_full(torch.nn.utils.get_total_norm(gradients))):
            raise diverged("the gradient", state.global_step + 1)

    def undo_step(self) -> bool:
        """Put the trained parameters back to before the last step of the optimizer; False where they were not kept."""
        if self._before is None:
            return False
        for parameter, before in zip(trainable(self.model).values(), self._before, strict=True):
            parameter.detach().copy_(before)
        return True

    def _remember(self) -> None:
        # a loss that is not finite tells of weights that are of no use, even where each of them is finite
        parameters = [p.detach() for p in trainable(self.model).values()]
        if sharding_requested() or sum(p.numel() for p in parameters) > _REMEMBERED:
            return
        if self._before is None:
            self._before = [torch.empty_like(p) for p in parameters]
        for before, parameter in zip(self._before, parameters, strict=True):
            before.copy_(parameter)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Record a training step; evaluations come through `evaluate`."""
        self._place = (state.global_step, round(state.epoch or 0.0, 6))
        if logs is None or "loss" not in logs:
            return
        step, epoch = self._place
        with gathered_parameters(list(trainable(self.model).values())):
            penalties = self.method.penalty_terms(self.model)
        self.history.add(
            "train", step=step, epoch=epoch, loss=logs["loss"], learning_rate=logs["learning_rate"], **penalties
        )
        self.display.step(step, epoch, logs["loss"], logs["learning_rate"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop on request, with a checkpoint; at the end of an epoch its evaluation comes first.

        Without a request there is a checkpoint where the last one is long ago, so that a kill costs minutes at most.
        """
        self._place = (state.global_step, round(state.epoch or 0.0, 6))
        at_the_end = float(state.epoch or 0.0).is_integer() or state.global_step >= state.max_steps
        stop, long_ago = self._agreed(args, self.interrupt.requested, time.monotonic() - self._saved > SAVE_SECONDS)
        if at_the_end:
            return
        control.should_save = control.should_save or stop or long_ago
        if stop:
            self.stopped = True
            control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Neither evaluate nor save again what was stopped within the epoch."""
        if self.stopped:
            control.should_evaluate = control.should_save = False
        elif self._agreed(args, self.interrupt.requested)[0] and state.global_step < state.max_steps:
            self.stopped = True
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The checkpoint is written: seal it, and forget best states that no checkpoint needs any more."""
        self._saved = time.monotonic()
        if args.world_size > 1:
            torch.distributed.barrier()  # every process has written its part
        if not self.writes:
            return
        seal(folder_of(self.folder, state.global_step), self.best_state, self.data_sha256)
        needed = best_states(self.folder)
        for path in self.folder.glob("best-*.safetensors"):
            if path != self.best_state and path.name not in needed:
                path.unlink()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop the clock."""
        self._tick()

    def _record_sigma(self) -> None:
        layers = self.method.singular_values(self.model)
        if layers:
            step, epoch = self._place
            self.history.add("sigma", step=step, epoch=epoch, layers=layers)

    def _agreed(self, args: TrainingArguments, *flags: bool) -> list[bool]:
        """Each flag, true where it is for any process: all must do the same at the same step."""
        if args.world_size == 1:
            return list(flags)
        shared = torch.tensor([int(flag) for flag in flags], device=args.device)
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
        return [bool(flag) for flag in shared.tolist()]

    def _tick(self) -> None:
        now = time.perf_counter()
        self.progress.train_seconds += now - self._clock
        self._clock = now


def is_better(metrics: dict[str, float], best: dict[str, float] | None, primary: str) -> bool:
    """Whether `metrics` beat `best` by the score `primary`; a tie and NaN do not, anything finite beats NaN."""
    value = metrics.get(primary, math.nan)
    if best is None:
        return True
    before = best.get(primary, math.nan)
    if math.isnan(value) or math.isnan(before):
        return math.isnan(before) and not math.isnan(value)
    return value < before if primary in LOWER_IS_BETTER else value > before

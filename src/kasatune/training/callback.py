"""The callback of a run: history.jsonl, evaluation, the best state, checkpoints, and stopping early."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback

from kasatune.data.tokenize import Examples
from kasatune.distributed.gather_scatter import gather_full
from kasatune.distributed.zero3 import gathered_parameters
from kasatune.evaluation.batches import batches_by_length, token_counts
from kasatune.evaluation.scoring import Scores
from kasatune.evaluation.task_model import TaskModel
from kasatune.io.progress import ProgressReporter
from kasatune.methods.shared.method import Method
from kasatune.methods.shared.trained_parameters import TrainedState, trainable
from kasatune.runs.history import EvaluateEvent, History, RoutingEvent, SigmaEvent, TrainEvent
from kasatune.training.better_score import is_better
from kasatune.training.checkpoint_contents import preserved_random_state, save_trained_parameters
from kasatune.training.checkpoints import checkpoint_folder, referenced_best_states, write_manifest
from kasatune.training.divergence import StepUndo, divergence_error
from kasatune.training.engines.bilevel import HELD_BACK
from kasatune.training.engines.forward_loss import FORWARD_LOSS
from kasatune.training.signals import Interrupt
from kasatune.training.tracker_series import routing_series, sigma_series
from kasatune.wording import counted

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

SAVE_SECONDS = 600.0
"""Seconds since the last checkpoint after which one is written within an epoch."""


@dataclass
class Progress:
    """Progress of a run; saved with every checkpoint.

    Attributes:
        best: epoch, step and metrics of the best evaluation so far; None before the first.
        last: the same of the latest evaluation.
        train_seconds: time spent in training, without evaluations.
        without_gain: evaluations since the best one.
        evaluate_seconds: time spent in evaluations.
    """

    best: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    without_gain: int = 0


@dataclass(frozen=True)
class CachedScores:
    """Scores of a model during training, reused for its saved files if those hold the same model bit for bit.

    Attributes:
        scores: scores of every row.
        state: the trained parameters of the model that was scored.
    """

    scores: Scores
    state: TrainedState

    @classmethod
    def of(cls, model: nn.Module, scores: Scores) -> CachedScores:
        """Cache `scores`, which were computed with `model` in its current state."""
        return cls(scores, TrainedState.of(model))

    def valid_for(self, loaded: TaskModel, examples: Examples) -> bool:
        """Whether scoring `loaded` would give the same scores, because it is the model that was scored.

        Every trained parameter must be equal bit for bit, and so must the logits of the cheapest batch, which depend
        on all frozen weights.

        Args:
            loaded: a model that was loaded from the saved files.
            examples: the rows that were scored.
        """
        logits = self.scores.logits
        if logits is None or not self.state.is_held_by(loaded.model):
            return False
        cheapest = batches_by_length(token_counts(examples.rows), loaded.recipe.training.eval_batch_size)[-1]
        again = loaded.logits(Examples([examples[index] for index in cheapest], frozenset()))
        return bool(np.array_equal(again, logits[cheapest]))


@dataclass
class RunCallback(TrainerCallback):
    """Writes history.jsonl, keeps the best state, and stops on request or when the gradient is not finite.

    Attributes:
        model: the model that is trained.
        method: its method, which computes penalties and singular values.
        score: evaluates the model in its current state.
        primary: the score that selects the best evaluation; higher is better unless it is a loss.
        keep_best: whether the state of the best evaluation is written to `folder`.
        folder: folder for checkpoints and best-STEP.safetensors.
        history: receives the events.
        display: receives the progress.
        interrupt: records whether a stop was requested.
        data_sha256: hash of the training data.
        base_fingerprint: fingerprint of the base model.
        adapter_sha256: hash of the adapter that training continues from; None for a new one.
        eval_steps: optimizer steps between evaluations, besides those at the end of an epoch; None for these alone.
        save_steps: optimizer steps between checkpoints, besides those at the end of an epoch; None for these alone.
        patience: evaluations without a better score after which the run ends; None to complete it.
        writes: whether this process writes files; true for the first process of a run only.
        evaluated: takes further measurements of the model after an evaluation at this epoch.
        routing_by_part: measures what the routers choose on each part of a mixture of tasks, by part.
        progress: progress of the run.
        stopped: whether the run was stopped on request, at a step from which it can be resumed.
        best_scores: the scores behind `progress.best`, if this process measured them.
        last_scores: the scores behind `progress.last`, if this process measured them.
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
    base_fingerprint: str = ""
    adapter_sha256: str | None = None
    eval_steps: int | None = None
    save_steps: int | None = None
    patience: int | None = None
    writes: bool = True
    evaluated: Callable[[float], None] = lambda epoch: None
    routing_by_part: Callable[[], dict[str, dict[str, Any]]] = dict
    progress: Progress = field(default_factory=Progress)
    stopped: bool = False
    best_scores: CachedScores | None = None
    last_scores: CachedScores | None = None

    def __post_init__(self) -> None:
        self._clock = time.perf_counter()
        self._last_save = time.monotonic()
        self._step, self._epoch = 0, 0.0
        self._tokens: torch.Tensor | None = None
        self._grad_norm: torch.Tensor | None = None
        self._penalties: dict[str, float] = {}
        self._evaluation_series: dict[str, float] = {}
        self._routing_by_part: dict[str, dict[str, Any]] = {}
        self._undo = StepUndo(self.model)

    @property
    def best_state(self) -> Path | None:
        """The file with the best state so far; None if there is none."""
        best = self.progress.best
        return self.folder / f"best-{best['step']}.safetensors" if self.keep_best and best is not None else None

    @property
    def out_of_patience(self) -> bool:
        """Whether `patience` evaluations in a row have brought no better score."""
        return self.patience is not None and self.progress.without_gain >= self.patience

    def progress_record(self) -> dict[str, Any]:
        """`progress` as plain data, for a checkpoint."""
        self._update_clock()
        return asdict(self.progress)

    def evaluate(self) -> dict[str, float]:
        """Score the model in its current state, and record the scores; those before the first step select nothing."""
        self._update_clock()
        with preserved_random_state():
            scores = self.score()
            self._routing_by_part = self.routing_by_part()
            self.evaluated(self._epoch)
        seconds = time.perf_counter() - self._clock
        self._clock += seconds
        self.progress.evaluate_seconds += seconds
        evaluation = {"epoch": self._epoch, "step": self._step, "metrics": scores.metrics}
        self.history.add(
            EvaluateEvent(
                step=self._step,
                epoch=self._epoch,
                split="validation",
                metrics=dict(scores.metrics),
                seconds=round(seconds, 3),
            )
        )
        self._evaluation_series = {**self._record_sigma(), **self._record_routing()}
        self.display.evaluated(self._epoch, scores.metrics)
        if self._step == 0:
            return scores.metrics
        self.progress.last = evaluation
        self.progress.without_gain += 1
        single = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        self.last_scores = CachedScores.of(self.model, scores) if single and scores.logits is not None else None
        if is_better(scores.metrics, self.progress.best and self.progress.best["metrics"], self.primary):
            self.progress.best, self.best_scores = evaluation, self.last_scores
            self.progress.without_gain = 0
            if self.best_state:
                save_trained_parameters(self.model, self.best_state, writes=self.writes)
        return scores.metrics

    def processed(self, tokens: torch.Tensor) -> None:
        """Receive the number of tokens of the next step."""
        self._tokens = tokens

    def step_series(self) -> dict[str, float]:
        """The penalty terms of the method, and the norm of the gradient where it is measured."""
        with gathered_parameters(list(trainable(self.model).values())):
            self._penalties = self.method.penalty_terms(self.model)
        norm = self._grad_norm
        return {**self._penalties, **({} if norm is None else {"grad_norm": float(norm)})}

    def evaluation_series(self) -> dict[str, float]:
        """Norms of sigma and the routing of a mixture in the last evaluation; see training/tracker_series.py."""
        return self._evaluation_series

    def undo_step(self) -> bool:
        """Restore the trained parameters from before the last optimizer step; False if no copy of them was made."""
        return self._undo.restore()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock; with `eval_steps` evaluate before the first step, otherwise record the initial sigma."""
        self._clock = time.perf_counter()
        self._last_save = time.monotonic()
        if state.global_step == 0 and self.eval_steps:
            self.evaluate()
        elif state.global_step == 0:
            self._record_sigma()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        """Stop before a gradient that is not finite reaches the weights; ZeRO-3 has skipped its step already.

        Raises:
            DivergedError: the gradient is not finite, except in float16, where loss scaling handles it.
        """
        self._undo.save()
        gradients = [p.grad for p in trainable(self.model).values() if p.grad is not None]
        if getattr(optimizer, "step_was_skipped", False) and not args.fp16:
            raise divergence_error("the gradient", state.global_step + 1)
        if args.fp16 or not gradients:
            return
        # The Trainer has already scaled all gradients by their norm, so the parameter at fault cannot be named.
        self._grad_norm = gather_full(torch.nn.utils.get_total_norm(gradients))
        if not torch.isfinite(self._grad_norm):
            raise divergence_error("the gradient", state.global_step + 1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Record a training step; evaluations are recorded by `evaluate`."""
        self._set_place(state)
        if logs is None or "loss" not in logs:
            return
        terms = {name: logs[name] for name in (*self._penalties, FORWARD_LOSS, HELD_BACK) if name in logs}
        loss, rate = logs["loss"], logs["learning_rate"]
        self._update_clock()
        record = {
            "step": self._step,
            "epoch": self._epoch,
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": logs.get("grad_norm"),
            "tokens": None if self._tokens is None else int(self._tokens),
            "seconds": round(self.progress.train_seconds, 3),
            "total_steps": state.max_steps,
            **terms,
        }
        self.history.add(TrainEvent.model_validate(record))
        self.display.step(self._step, self._epoch, loss, rate)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop on request, with a checkpoint; at the end of an epoch, after its evaluation.

        Evaluations and checkpoints within an epoch are those of `eval_steps` and `save_steps`. A checkpoint is also
        written if the last one is old, so that a kill loses minutes at most.
        """
        self._set_place(state)
        epoch_ends = float(state.epoch or 0.0).is_integer() or state.global_step >= state.max_steps
        save_is_old = time.monotonic() - self._last_save > SAVE_SECONDS
        stop, save = self._agreed(args, self.interrupt.requested, save_is_old)
        if epoch_ends:
            return
        control.should_evaluate = control.should_evaluate or _is_due(state.global_step, self.eval_steps)
        control.should_save = control.should_save or stop or save or _is_due(state.global_step, self.save_steps)
        if stop:
            self.stopped = True
            control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop on request; a run that was stopped within the epoch is not evaluated or saved again."""
        last = self.progress.last
        if last is not None and last["step"] == state.global_step:  # out of patience within the epoch
            control.should_evaluate = False
        if self.stopped:
            control.should_evaluate = control.should_save = False
        elif self._agreed(args, self.interrupt.requested)[0] and state.global_step < state.max_steps:
            self.stopped = True
            control.should_training_stop = True

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop when `patience` evaluations in a row have brought no better score."""
        if self._agreed(args, self.out_of_patience)[0] and state.global_step < state.max_steps:
            control.should_training_stop = True
            self.display.message(
                f"stopping at step {state.global_step}: {counted(self.progress.without_gain, 'evaluation')} without a "
                "better score (training.patience)"
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the manifest of the new checkpoint, and remove best states that no checkpoint refers to anymore."""
        self._last_save = time.monotonic()
        if args.world_size > 1:
            torch.distributed.barrier()  # until every process has written its part
        if not self.writes:
            return
        write_manifest(
            checkpoint_folder(self.folder, state.global_step),
            self.best_state,
            self.data_sha256,
            self.base_fingerprint,
            self.adapter_sha256,
        )
        referenced = referenced_best_states(self.folder)
        for path in self.folder.glob("best-*.safetensors"):
            if path != self.best_state and path.name not in referenced:
                path.unlink()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop the clock."""
        self._update_clock()

    def _set_place(self, state: TrainerState) -> None:
        self._step, self._epoch = state.global_step, round(state.epoch or 0.0, 6)

    def _record_sigma(self) -> dict[str, float]:
        layers = self.method.singular_values(self.model)
        if layers:
            self.history.add(SigmaEvent.model_validate({"step": self._step, "epoch": self._epoch, "layers": layers}))
        return sigma_series(layers)

    def _record_routing(self) -> dict[str, float]:
        routers = self.method.routing(self.model)
        if routers:
            parts = self._routing_by_part
            self.history.add(RoutingEvent(step=self._step, epoch=self._epoch, routers=routers, parts=parts))
        return routing_series(routers)

    def _agreed(self, args: TrainingArguments, *flags: bool) -> list[bool]:
        """The logical or of each flag over all processes, so that all of them act alike at the same step."""
        if args.world_size == 1:
            return list(flags)
        shared = torch.tensor([int(flag) for flag in flags], device=args.device)
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
        return [bool(flag) for flag in shared.tolist()]

    def _update_clock(self) -> None:
        now = time.perf_counter()
        self.progress.train_seconds += now - self._clock
        self._clock = now


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0

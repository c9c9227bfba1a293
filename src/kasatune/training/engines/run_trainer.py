"""Mixin for transformers' Trainer with the example counts, learning rates, penalty and checkpoints of a run.

Three private methods of transformers' Trainer are overridden. No public method loads a checkpoint:
`_load_from_checkpoint` expects a complete model, and `_prepare_for_training`, with DeepSpeed, a checkpoint that
DeepSpeed wrote, which only the same number of processes can read. `_get_train_sampler` gives the order of the rows; the
Trainer's own grouping by length draws from the global random state and cannot be resumed within an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback

from kasatune.data.length_groups import LengthGroupSampler
from kasatune.distributed import zero3
from kasatune.distributed.fsdp import deepspeed_requested
from kasatune.distributed.gather_scatter import gather_full
from kasatune.evaluation.batches import token_counts
from kasatune.evaluation.causal_loss import learnt_tokens
from kasatune.io.atomic import write_json
from kasatune.methods.shared.method import Method, MethodSettings
from kasatune.methods.shared.trained_parameters import trainable, within
from kasatune.training.checkpoint_contents import (
    METHOD_STATE,
    PROGRESS,
    WEIGHTS,
    load_optimizer,
    load_random_state,
    load_scaler,
    load_trained_parameters,
    save_optimizer,
    save_random_state,
    save_scaler,
    save_trained_parameters,
)
from kasatune.training.deepspeed_config import partition, stop_partitioning_on_load
from kasatune.training.divergence import divergence_error
from kasatune.training.engines.bilevel import HELD_BACK, BilevelSampler
from kasatune.training.engines.forward_loss import ForwardLossTrainer

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

IGNORED_LABEL = -100
"""The label of a row that only pads a batch, if labels are integers; NaN if they are real numbers."""
_SCORE_PREFIX = "eval_"
_STEP_PENALTY = "step penalty"


@dataclass(frozen=True)
class RunHooks:
    """Functions and settings of a run that its trainer uses.

    Attributes:
        method: the fine-tuning method.
        settings: the recipe's section `method`.
        new_modules: names of the newly initialized modules, which train with `head_learning_rate`.
        head_learning_rate: their learning rate; None for the common one.
        evaluate: evaluates the model in its current state and returns scores by name.
        progress: returns the progress of the run as plain data, for a checkpoint.
        group_by_length: whether the rows of a batch have similar lengths.
        processed: receives the number of tokens of every optimizer step, over all processes and without padding.
        step_series: further values of an optimizer step for the Trainer's log, which experiment trackers receive.
        evaluation_series: the same for an evaluation that `evaluate` has just made.
    """

    method: Method
    settings: MethodSettings
    new_modules: Sequence[str]
    head_learning_rate: float | None
    evaluate: Callable[[], dict[str, float]]
    progress: Callable[[], dict[str, Any]]
    group_by_length: bool = False
    processed: Callable[[Tensor], None] = lambda tokens: None
    step_series: Callable[[], dict[str, float]] = dict
    evaluation_series: Callable[[], dict[str, float]] = dict


class RunTrainer(ForwardLossTrainer):
    """Mixin for a transformers Trainer, or a subclass of it, that trains a run.

    Differences from the base Trainer:

    - the examples of an optimizer step are counted over all its micro-batches and processes;
    - rows of similar length share a batch where the recipe says so, in an order that a resumed run repeats;
    - the head, and parameters for which the method requests it, have a separate learning rate;
    - a method's outer parameters are trained on held-back rows, in steps in which nothing else is trained;
    - the gradient of the method's step penalty is added once per optimizer step, its forward loss in every micro-batch;
    - a checkpoint holds trained parameters only, is readable with any number of processes, and contains no pickle;
    - evaluation is done by `RunHooks.evaluate`, so that it agrees with `kasatune evaluate`.

    Args:
        hooks: functions and settings of the run.
        callbacks: callbacks of the Trainer, in this order.
        trainer_arguments: arguments of the base Trainer.

    Attributes:
        undo_to: the step with the last good weights, if the current ones are not; None otherwise.
    """

    def __init__(self, *, hooks: RunHooks, callbacks: Sequence[TrainerCallback] = (), **trainer_arguments: Any) -> None:
        self._restore = _RestoreCheckpoint(self)
        super().__init__(callbacks=[self._restore, *callbacks], **trainer_arguments)
        stop_partitioning_on_load()
        self._hooks = hooks
        self._bilevel = self._make_bilevel_sampler()
        self.undo_to: int | None = None
        self.remove_callback(PrinterCallback)

    @property
    def run_model(self) -> nn.Module:
        """The model that is trained, without the wrapper of a distributed run."""
        return cast(nn.Module, self.model)

    def forward_loss(self) -> Tensor | None:
        """See `ForwardLossTrainer`."""
        return self._hooks.method.forward_loss(self.run_model)

    def batch_labels(self, labels: Tensor | None) -> AbstractContextManager[Any]:
        """See `ForwardLossTrainer`."""
        return self._hooks.method.batch_labels(self.run_model, labels)

    def train(
        self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: list[str] | None = None
    ) -> Any:
        """Train, from a checkpoint if one is given; then restore the model's original forward, without autocast.

        Raises:
            DivergedError: a step exceeds the range of a float, because of the learning rate; see also `training_step`.
        """
        if resume_from_checkpoint is not None:
            self._restore.checkpoint = Path(resume_from_checkpoint)
            load_trained_parameters(self.run_model, Path(resume_from_checkpoint) / WEIGHTS)
        if deepspeed_requested():
            partition(self.run_model, self.args)
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        except RuntimeError as fault:
            if "without overflow" not in str(fault):  # torch's message for a factor that its dtype cannot represent
                raise
            self.undo_to = self.state.global_step
            raise divergence_error("the optimizer's step", self.state.global_step + 1) from fault
        finally:
            self.accelerator.unwrap_model(self.run_model, keep_fp32_wrapper=False)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The base class's step.

        Raises:
            DivergedError: the loss is not finite. With several processes it is detected from the gradient, on all of
                them, at the end of the step.
        """
        loss = super().training_step(*args, **kwargs)
        if self._bilevel is not None:
            self._drop_gradients_of_the_other_level(self._bilevel)
        if self.args.world_size == 1 and not torch.isfinite(loss):
            self.undo_to = self.state.global_step - 1
            raise divergence_error(f"the loss ({loss.item()})", self.state.global_step + 1)
        return loss

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of a step, and the number of examples, or of learnt tokens, in them over all processes.

        The base class counts labels other than -100, but a regression target may be -100. At the end of an epoch the
        data loader gives every process the same number of rows by repeating some; repeated rows are masked.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        processes, size = self.args.world_size, self.args.per_device_train_batch_size
        tokens = sum((_count_tokens(batch) for batch in batches), torch.tensor(0)).to(device)
        if processes == 1:
            self._hooks.processed(tokens)
            return batches, torch.tensor(sum(self.count_examples(batch) for batch in batches), device=device)
        assert isinstance(self.train_dataset, Sized)
        rows = len(self.train_dataset)
        pieces = math.ceil(rows / (size * processes))
        steps = math.ceil(pieces / self.args.gradient_accumulation_steps)
        start = self.state.global_step % steps * self.args.gradient_accumulation_steps * size * processes
        examples = 0
        for number, batch in enumerate(batches):
            own = max(0, rows - start - (number * processes + self.args.process_index) * size)
            examples += self.mask_repeated_rows(batch, own)
        counts = torch.stack([torch.tensor(examples, device=device), tokens])
        everywhere: Any = self.accelerator.gather(counts[None])
        examples_of_all, tokens_of_all = everywhere.sum(0)
        self._hooks.processed(tokens_of_all)
        return batches, examples_of_all

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        """The base class's random order, batches of rows of similar length, or the order of bi-level training."""
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        if self._bilevel is not None:
            return self._bilevel
        if not self._hooks.group_by_length:
            return super()._get_train_sampler(rows)
        lengths = token_counts(rows)
        return LengthGroupSampler(lengths, self._rows_of_step, self.args.seed, lambda: self._epoch_of(len(lengths)))

    def _make_bilevel_sampler(self) -> BilevelSampler | None:
        rows, hooks = cast(Any, self.train_dataset), self._hooks
        share = hooks.method.held_back(hooks.settings)
        if not share:
            return None
        lengths = token_counts(rows) if hooks.group_by_length else None
        size, seed = self._rows_of_step, self.args.seed
        return BilevelSampler(rows, size, share, seed, lambda: self._epoch_of(len(rows)), lengths)

    @property
    def _rows_of_step(self) -> int:
        """The rows of an optimizer step, over its micro-batches and all processes."""
        args = self.args
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

    def _epoch_of(self, rows: int) -> int:
        """The number of the epoch that begins, or is resumed."""
        return self.state.global_step // math.ceil(rows / self._rows_of_step)

    def _drop_gradients_of_the_other_level(self, bilevel: BilevelSampler) -> None:
        """After a micro-batch: keep the gradients of the outer parameters in an outer step, of the others otherwise.

        The optimizer leaves a parameter without a gradient as it is, its decay and its moments included.
        """
        outer = bilevel.is_outer(self.state.global_step)
        for name, parameter in trainable(self.run_model).items():
            if self._hooks.method.is_outer(name) != outer:
                parameter.grad = None

    def count_examples(self, batch: dict[str, Any]) -> int:
        """The number of rows of a micro-batch, or of learnt tokens if its labels are (rows, tokens)."""
        return _count(batch["labels"])

    def mask_repeated_rows(self, batch: dict[str, Any], number: int) -> int:
        """Mask all rows of a micro-batch but the first `number`, in place; returns the examples in those."""
        labels = batch["labels"]
        examples = _count(labels[:number])
        labels[number:] = math.nan if labels.is_floating_point() else IGNORED_LABEL
        return examples

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with a group for each learning rate and weight decay; biases and normalisations do not decay."""
        if self.optimizer is None:
            model = self.run_model if model is None else model
            decaying = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[float, float], list[Tensor]] = {}
            for name, parameter in trainable(model).items():
                decay = self.args.weight_decay if name in decaying else 0.0
                groups.setdefault((self._learning_rate(name), decay), []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()],
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
            )
            self.optimizer.register_step_pre_hook(self._add_step_penalty_gradient)
        return self.optimizer

    def _learning_rate(self, name: str) -> float:
        hooks = self._hooks
        if not within(name, hooks.new_modules):
            return self.args.learning_rate * hooks.method.learning_rate_factor(name, hooks.settings)
        return self.args.learning_rate if hooks.head_learning_rate is None else hooks.head_learning_rate

    def _add_step_penalty_gradient(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Before every optimizer step, after clipping and unscaling: grad += d penalty / d parameter."""
        parameters = list(trainable(self.run_model).values())
        partitioned_step = zero3.buffer_step(optimizer, parameters)
        if partitioned_step is not None:
            zero3.add_gradients(partitioned_step, _STEP_PENALTY, self._gathered_step_penalty_gradients)
            return
        for parameter, gradient in self._step_penalty_gradients(parameters):
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def _step_penalty_gradients(self, parameters: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        with torch.enable_grad():
            loss = self._hooks.method.step_penalty(self.run_model, self._hooks.settings)
        if loss is None:
            return []
        # Not backward(): under DistributedDataParallel it would start another reduction.
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [(p, gradient) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]

    def _gathered_step_penalty_gradients(self) -> list[tuple[Tensor, Tensor]]:
        parameters = list(trainable(self.run_model).values())
        with zero3.gathered_parameters(parameters):
            return self._step_penalty_gradients(parameters)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The base class's log, with `RunHooks.step_series` in addition where it logs an optimizer step."""
        if "loss" in logs:
            level = (
                {} if self._bilevel is None else {HELD_BACK: float(self._bilevel.is_outer(self.state.global_step - 1))}
            )
            logs = {**self._hooks.step_series(), **level, **logs}
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Evaluate with `RunHooks.evaluate`, and log the scores as the base class does.

        Raises:
            DivergedError: a trained weight is not finite after the last step of an epoch.
        """
        weights = trainable(self.run_model).values()
        if self.args.world_size == 1 and not all(bool(weight.isfinite().all()) for weight in weights):
            self.undo_to = self.state.global_step - 1
            raise divergence_error("a trained weight", self.state.global_step)
        metrics = {f"{_SCORE_PREFIX}{name}": value for name, value in self._hooks.evaluate().items()}
        self.log({**metrics, **self._hooks.evaluation_series()})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained parameters, and everything else that a resumed run needs."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        model, writes = self.run_model, self.args.should_save
        state = {name: gather_full(tensor) for name, tensor in self._hooks.method.training_state(model).items()}
        save_trained_parameters(model, folder / WEIGHTS, writes=writes)
        save_optimizer(folder, model, cast(Any, self.optimizer), self.lr_scheduler, writes=writes)
        save_random_state(folder, self.args.process_index)
        if writes:
            method_state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
            save_file(method_state, folder / METHOD_STATE)
            save_scaler(folder, self.accelerator.scaler)
            write_json(folder / PROGRESS, self._hooks.progress())

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Do nothing: `train` has loaded the trained parameters."""

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """The base class's preparation without a checkpoint, which the first callback restores."""
        return super()._prepare_for_training(max_steps, train_dataloader, None)


class _RestoreCheckpoint(TrainerCallback):
    """Restores optimizer, schedule, loss scale and random state from a checkpoint; the first callback of a trainer."""

    def __init__(self, trainer: RunTrainer) -> None:
        self.checkpoint: Path | None = None
        self._trainer = trainer
        self._random_state_pending = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **_: Any,
    ) -> None:
        """Restore all but the random state."""
        if self.checkpoint is not None:
            load_optimizer(self.checkpoint, self._trainer.run_model, optimizer, lr_scheduler)
            load_scaler(self.checkpoint, self._trainer.accelerator.scaler)
            self._random_state_pending = True

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Restore the random state of a checkpoint between two epochs, from which the data loader then draws."""
        if float(state.epoch or 0.0).is_integer():
            self._restore_random_state()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Restore the random state of a checkpoint within an epoch, once the data loader has skipped its rows."""
        self._restore_random_state()

    def _restore_random_state(self) -> None:
        if self.checkpoint is not None and self._random_state_pending:
            load_random_state(self.checkpoint, self._trainer.args.process_index)
            self._random_state_pending = False


def _count_tokens(batch: dict[str, Any]) -> Tensor:
    """The tokens of a micro-batch without padding; all of its positions if it has no attention mask."""
    mask = batch.get("attention_mask")
    return torch.tensor(batch["input_ids"].numel()) if mask is None or mask.ndim != 2 else mask.ne(0).sum()


def _count(labels: Tensor) -> int:
    return learnt_tokens(labels) if labels.ndim == 2 else len(labels)

"""transformers' Trainer, told what a recipe says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PrinterCallback, Trainer, TrainingArguments

from kasatune.distributed import zero3
from kasatune.distributed.fsdp import deepspeed_requested
from kasatune.distributed.gather_scatter import gather_full, scatter_
from kasatune.errors import DivergedError, RecipeError
from kasatune.evaluation.causal_loss import learnt_tokens, token_losses
from kasatune.io.atomic import atomic_write, write_json
from kasatune.methods.shared.method import Method, MethodSettings
from kasatune.methods.shared.trained_parameters import trainable, within
from kasatune.models.device import find_device
from kasatune.training.checkpoints import KEPT
from kasatune.training.deepspeed import deal_out, loaded_whole, settle
from kasatune.training.training_state import (
    load_optimizer,
    load_random,
    load_scaler,
    plain_name,
    save_optimizer,
    save_random,
    save_scaler,
)

if TYPE_CHECKING:
    from kasatune.recipes.schema import TrainingSection

PROGRESS = "progress.json"
METHOD = "method.safetensors"
WEIGHTS = "model.safetensors"
_SCORE_PREFIX = "eval_"
_AUXILIARY = "auxiliary"
FILLER = -100  # the label of a row that only fills a batch; NaN where labels are real numbers


class RunSteps(Trainer if TYPE_CHECKING else object):
    """What the trainer of a run does in its own way, whichever Trainer it is built on.

    Differs from its base in this: a step's examples are counted over all its pieces and processes; the head may have a
    learning rate of its own, and so may what the method says; the gradient of the method's auxiliary loss is added once
    a step; checkpoints hold the trained parameters and no others, and what they hold can be read by any number of
    processes and without pickle; evaluation is the run's own, so that it agrees with `kasatune evaluate`. To load a
    checkpoint the base has no public place: its methods for the parts of one are replaced.

    Args:
        method: how the model is trained.
        settings: the method's.
        new_modules: names of the modules with the head's learning rate.
        head_learning_rate: theirs; None for the common one.
        scores: evaluates the model as it is and returns its scores by name.
        progress: gives what is saved with every checkpoint, as plain data.
        further: arguments of the Trainer.

    Attributes:
        undo_to: the step whose weights were the last good ones, where those of now are not.
    """

    def __init__(
        self,
        *,
        method: Method,
        settings: MethodSettings,
        new_modules: Sequence[str],
        head_learning_rate: float | None,
        scores: Callable[[], dict[str, float]],
        progress: Callable[[], dict[str, Any]],
        **further: Any,
    ) -> None:
        super().__init__(**further)
        loaded_whole()
        self._method = method
        self._settings = settings
        self._new_modules = tuple(new_modules)
        self._head_learning_rate = head_learning_rate
        self._scores = scores
        self._progress = progress
        self.undo_to: int | None = None
        self.remove_callback(PrinterCallback)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The base's training; the model's forward is its own again afterwards, without mixed precision around it.

        Raises:
            DivergedError: a learning rate that takes a step beyond what a float holds; see `training_step` too.
        """
        try:
            return super().train(*args, **kwargs)
        except RuntimeError as fault:
            if "without overflow" not in str(fault):  # as torch says it of a factor that it multiplies by
                raise
            self.undo_to = self.state.global_step
            raise diverged("the optimizer's step", self.state.global_step + 1) from fault
        finally:
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)  # type: ignore[arg-type]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The base's step.

        Raises:
            DivergedError: the loss is not finite. Where processes train together, its gradient ends all of them at the
                end of the step.
        """
        loss = super().training_step(*args, **kwargs)
        if self.args.world_size == 1 and not torch.isfinite(loss):
            self.undo_to = self.state.global_step - 1
            raise diverged(f"the loss ({loss.item()})", self.state.global_step + 1)
        return loss

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The pieces of a step, and the number of examples in them, or of learnt tokens, over all processes.

        The base counts labels that are not -100; a number to predict may well be -100. At the end of an epoch the
        data loader gives every process equally many rows, by giving some twice: their second copy is marked.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        processes, size = self.args.world_size, self.args.per_device_train_batch_size
        if processes == 1:
            return batches, torch.tensor(sum(_answers(batch["labels"]) for batch in batches), device=device)
        rows = len(self.train_dataset)  # type: ignore[arg-type]
        pieces = math.ceil(rows / (size * processes))
        steps = math.ceil(pieces / self.args.gradient_accumulation_steps)
        start = self.state.global_step % steps * self.args.gradient_accumulation_steps * size * processes
        answers = 0
        for number, batch in enumerate(batches):
            own = max(0, rows - start - (number * processes + self.args.process_index) * size)
            answers += self._keep_rows(batch, own)
        everywhere: Any = self.accelerator.gather(torch.tensor(answers, device=device))
        return batches, everywhere.sum()

    def _keep_rows(self, batch: dict[str, Any], number: int) -> int:
        """Mark all rows of a piece but the first `number` as fillers; how many answers those have."""
        labels = batch["labels"]
        answers = _answers(labels[:number])
        labels[number:] = math.nan if labels.is_floating_point() else FILLER
        return answers

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; a group for each learning rate and weight decay (biases and normalisations do not decay)."""
        if self.optimizer is None:
            model = self.model if model is None else model
            decaying = set(self.get_decay_parameter_names(model))  # type: ignore[arg-type]
            groups: dict[tuple[float, float], list[Tensor]] = {}
            for name, parameter in trainable(model).items():  # type: ignore[arg-type]
                rate = self._learning_rate(name)
                decay = self.args.weight_decay if name in decaying else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()],
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
            )
            self.optimizer.register_step_pre_hook(self._add_auxiliary_gradient)
        return self.optimizer

    def _learning_rate(self, name: str) -> float:
        if not within(name, self._new_modules):
            return self.args.learning_rate * self._method.learning_rate_factor(name, self._settings)
        return self.args.learning_rate if self._head_learning_rate is None else self._head_learning_rate

    def _add_auxiliary_gradient(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Just before every optimizer step, after clipping and unscaling: grad += d auxiliary loss / d parameter."""
        parameters = list(trainable(self.model).values())  # type: ignore[arg-type]
        buffer = zero3.buffer_step(optimizer, parameters)
        if buffer is not None:
            zero3.add_gradients(buffer, _AUXILIARY, self._gathered_auxiliary_gradients)
            return
        for parameter, gradient in self._auxiliary_gradients(parameters):
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def _auxiliary_gradients(self, parameters: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        model: Any = self.model
        with torch.enable_grad():
            loss = self._method.step_penalty(model, self._settings)
        if loss is None:
            return []
        # Not backward(): under DistributedDataParallel that would start another reduction.
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [(p, gradient) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]

    def _gathered_auxiliary_gradients(self) -> list[tuple[Tensor, Tensor]]:
        parameters = list(trainable(self.model).values())  # type: ignore[arg-type]
        with zero3.gathered_parameters(parameters):
            return self._auxiliary_gradients(parameters)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The run's own scores, logged like the base's."""
        metrics = {f"{_SCORE_PREFIX}{name}": value for name, value in self._scores().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained parameters, and all that a resumed run needs beside them."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        model: Any = self.model
        optimizer: Any = self.optimizer
        writes = self.args.should_save
        state = {name: gather_full(tensor) for name, tensor in self._method.training_state(model).items()}
        save_state(model, folder / WEIGHTS, writes=writes)
        save_optimizer(folder, model, optimizer, self.lr_scheduler, writes=writes)
        save_random(folder, self.args.process_index)
        if writes:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, folder / METHOD)
            save_scaler(folder, self.accelerator.scaler)
            write_json(folder / PROGRESS, self._progress())

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        # The base asks the configuration of a model that transformers itself sharded.
        model: Any = self.model
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        if not deepspeed_requested():
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        # The base would look for a checkpoint of DeepSpeed's, which only as many processes can read.
        model: Any = self.model
        if resume_from_checkpoint is not None:
            load_state(model, Path(resume_from_checkpoint) / WEIGHTS)
        deal_out(model, self.args)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            model: Any = self.model
            optimizer: Any = self.optimizer
            load_optimizer(Path(checkpoint), model, optimizer, self.lr_scheduler)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_scaler(Path(checkpoint), self.accelerator.scaler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_random(Path(checkpoint), self.args.process_index)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        own: Any = self.model if model is None else model
        load_state(own, Path(resume_from_checkpoint) / WEIGHTS)


class RunTrainer(RunSteps, Trainer):
    """transformers' Trainer for a run: the loss of a step is the sum over its examples over their number."""

    def __init__(self, **further: Any) -> None:
        super().__init__(compute_loss_func=mean_loss, **further)


def mean_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """(1/N) sum_i loss_i over the examples of this piece, N the examples of the whole optimizer step.

    Cross-entropy for integer labels, squared error for real ones; computed in float32. Where labels are (rows, tokens)
    an example is a token that is learnt, predicted from those before it. Rows that only fill a batch, labelled -100 or
    NaN, do not count.
    """
    if labels.ndim == 2:
        return token_losses(outputs.logits, labels) / (
            learnt_tokens(labels) if num_items_in_batch is None else num_items_in_batch
        )
    logits = outputs.logits.float()
    if labels.is_floating_point():
        given = logits.squeeze(-1)
        wanted = torch.where(labels.isnan(), given.detach(), labels.float())
        loss = functional.mse_loss(given, wanted, reduction="sum")
    else:
        loss = functional.cross_entropy(logits, labels, reduction="sum", ignore_index=FILLER)
    return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def _answers(labels: Tensor) -> int:
    return learnt_tokens(labels) if labels.ndim == 2 else len(labels)


def diverged(what: str, step: int) -> DivergedError:
    """The error for a loss or gradient that is not finite at optimizer step `step`."""
    return DivergedError(
        f"training diverged: {what} is not finite at step {step}; the last good state is kept. "
        "Lower training.learning_rate (or beta and gamma), set training.max_grad_norm, or use precision float32"
    )


def save_state(model: nn.Module, path: Path, *, writes: bool = True) -> None:
    """Write the trained parameters of `model`, whole, under a temporary name first.

    Every process of a distributed run must call it; the one that `writes` does.
    """
    tensors = {}
    for name, parameter in trainable(model).items():
        gathered = gather_full(parameter).detach()
        if writes:
            tensors[plain_name(name)] = gathered.cpu().contiguous()
    if writes:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})


def load_state(model: nn.Module, path: Path) -> None:
    """Put trained parameters that `save_state` wrote into `model`, which may be sharded."""
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dictionary
            scatter_(file.get_tensor(name), parameters[name])


def training_arguments(
    section: TrainingSection, checkpoints: Path, kind: type[TrainingArguments] = TrainingArguments, **further: Any
) -> TrainingArguments:
    """The recipe's `training` section in the Trainer's terms.

    Args:
        section: of the recipe.
        checkpoints: the folder for them.
        kind: of the Trainer that is used.
        further: what that kind has of its own.

    Raises:
        RecipeError: the step cannot be cut into equal pieces over the processes, or the device or the precision is not
            to be had on this machine.
    """
    device = find_device(section)
    try:
        arguments = kind(
            output_dir=str(checkpoints),
            num_train_epochs=float(section.epochs),
            gradient_accumulation_steps=section.gradient_accumulation,
            learning_rate=section.learning_rate,
            weight_decay=section.weight_decay,
            # A ratio below 1 is a share of the steps, 1 would be a single step.
            warmup_steps=min(section.warmup_ratio, 1 - 1e-9),
            lr_scheduler_type=section.schedule,
            max_grad_norm=section.max_grad_norm or 0.0,
            bf16=section.precision == "bfloat16",
            fp16=section.precision == "float16",
            activation_checkpointing=section.gradient_checkpointing,
            activation_checkpointing_kwargs={"use_reentrant": False} if section.gradient_checkpointing else None,
            seed=section.seed,
            data_seed=section.seed,
            use_cpu=device.type == "cpu",
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=KEPT,
            save_only_model=True,  # as the Trainer sees it; `RunTrainer.save_model` writes the rest
            logging_strategy="steps",
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to=list(section.report_to) or "none",
            remove_unused_columns=False,
            disable_tqdm=True,
            dataloader_pin_memory=device.type == "cuda",
            max_steps=-1 if section.max_steps is None else section.max_steps,
            **further,
        )
    except (ValueError, ImportError) as fault:
        raise RecipeError([f"training: {fault}"]) from fault
    # Several visible GPUs without a launcher would mean DataParallel and another batch size: one is used.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if deepspeed_requested():
        settle(arguments, section)
    pieces = section.gradient_accumulation * arguments.world_size
    if section.batch_size % pieces:
        raise RecipeError(
            [
                f"training.batch_size: {section.batch_size} examples cannot be cut into {pieces} equal pieces "
                f"(gradient_accumulation {section.gradient_accumulation} x {arguments.world_size} processes); "
                "change one of them"
            ]
        )
    arguments.per_device_train_batch_size = section.batch_size // pieces
    return arguments

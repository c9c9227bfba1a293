"""What one forward pass of a model with routed experts shares: which tokens count, balance losses, prompts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kasatune.errors import InputError

IGNORED = -100


class Load(Protocol):
    """The part of `balance.RouterLoad` that a forward pass needs."""

    def add(self, probabilities: Tensor, chosen: Tensor, weights: Tensor | None, balanced: Tensor | None) -> None:
        """Count the choices of one forward pass."""
        ...

    def loss(self, mean_probability: Tensor) -> Tensor:
        """The balance loss for mean probabilities (N,)."""
        ...


class ForwardPass:
    """State of the current forward pass, which hooks on the base model open and close.

    The items over which a balance loss is a mean are those of the task's loss: tokens that predict a learnt one where
    labels are (rows, tokens), otherwise rows, each the mean over its tokens. Without labels, all tokens that are not
    padding count.

    Attributes:
        labels: labels of the batch that the caller passes outside the model, as transformers' Trainer does with its own
            loss function; None for those among the model's arguments.
        adds_to_loss: whether the balance loss is added to the loss that the model computes from `labels`.
        recording: whether choices are counted in evaluation mode too.
        token_weights: (rows, tokens), the weight of each token, summing to the number of items; None for 1.
        attention_mask: (rows, tokens), of this pass; None for no padding.
        open: whether a forward pass is running. Gradient checkpointing computes blocks again when it is not, and what
            is recorded then would count twice.
    """

    def __init__(self) -> None:
        self.adds_to_loss = True
        self._handles: list[RemovableHandle] = []
        self._reset()

    def _reset(self) -> None:
        self.labels: Tensor | None = None
        self.recording = False
        self._warned = False
        self._clear()

    def _clear(self) -> None:
        self.token_weights: Tensor | None = None
        self.attention_mask: Tensor | None = None
        self.open = False
        self._losses: list[Tensor] = []
        self._has_losses = self._keeps_gradients = False
        self._pending: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Settings and hooks only: tensors of a pass cannot be copied."""
        return {"adds_to_loss": self.adds_to_loss, "_handles": self._handles}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the settings, between two passes."""
        self.__dict__.update(state)
        self._reset()

    def install(self, model: nn.Module) -> None:
        """Register the hooks on the base model."""
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]

    def remove(self) -> None:
        """Remove the hooks from the base model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # One forward pass

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._pending is not None and self.adds_to_loss and not self._warned:
            self._warned = True
            warnings.warn(
                "the balance loss of the routers was not used: the model computes no loss. Pass labels to the model, "
                "add kasatune.mixtures.balance_loss(model) to your loss, or set balance_weight=0",
                stacklevel=2,
            )
        self._clear()
        self.open, self._keeps_gradients = True, torch.is_grad_enabled()
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        self.attention_mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        labels: Any = self.labels if self.labels is not None else kwargs.get("labels")
        if self.labels is not None and self.attention_mask is not None and len(labels) != len(self.attention_mask):
            labels = None  # a pass on something else inside the context
        self.begin(model, args, kwargs, labels if isinstance(labels, Tensor) else None)

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], labels: Tensor | None) -> None:
        """Compute the weights of the tokens from the arguments of the model."""
        self.token_weights = token_weights(self.attention_mask, labels)

    def end(self, kwargs: dict[str, Any], output: Any) -> None:
        """Keep what the next pass needs."""

    def _after(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        self.open = False
        self.end(kwargs, output)
        if not self._losses:
            return None
        loss = torch.stack([loss.to(self._losses[0].device) for loss in self._losses]).mean()
        self._losses = []
        labels = kwargs.get("labels")
        named: Any = output
        is_tuple = isinstance(output, tuple)
        computed = output[0] if is_tuple else getattr(output, "loss", None)
        if not self.adds_to_loss or labels is None:
            self._pending = loss
            return None
        if kwargs.get("fused_lm_head"):
            # TRL's SFTTrainer asks for log-probabilities, of which its loss is a mean over the learnt tokens.
            named["log_probs"] = named["log_probs"] - loss.to(named["log_probs"]) * named["label_mask"]
            return named
        if computed is None:
            self._pending = loss
            return None
        loss = loss * self._share_of_step(labels, kwargs.get("num_items_in_batch"))
        total = computed + loss.to(computed)
        if is_tuple:
            return (total, *output[1:])
        named["loss"] = total
        return named

    def _share_of_step(self, labels: Tensor, number: Any) -> Any:
        """The share of this micro-batch in the items of the optimizer step, by which the model divides its loss."""
        return 1.0 if number is None else labels.ne(IGNORED).sum() / number

    def counts(self, *, training: bool) -> bool:
        """Whether `record` has an effect in this pass."""
        return training or (self.recording and self.open)

    def record(
        self,
        load: Load,
        probabilities: Tensor,
        chosen: Tensor,
        weight: float,
        *,
        training: bool,
        balanced: Tensor | None = None,
        rows: bool = False,
    ) -> None:
        """Count the choices of a router, and add its balance loss.

        Args:
            load: of the router.
            probabilities: (..., N), float32.
            chosen: (..., N), see `RouterLoad.add`.
            weight: of the loss, which is a mean over the routers.
            training: whether this is a training pass, which has a balance loss.
            balanced: (..., N), the choices of which the balance loss takes the shares; None for `chosen`.
            rows: each row is one item, as for prompts. Otherwise a row is a token.
        """
        if not self.counts(training=training):
            return
        flat, chosen = probabilities.flatten(0, -2), chosen.detach().flatten(0, -2)
        balanced = chosen if balanced is None else balanced.detach()
        weights = self.row_weights() if rows else self.token_weights
        weights = weights.flatten().to(flat) if weights is not None and weights.numel() == len(flat) else None
        if self.open:
            load.add(flat.detach(), chosen, weights, balanced if training else None)
        if training and weight:
            # Also when a block is computed again: checkpointing compares the tensors that both computations save.
            mean = flat.mean(0) if weights is None else weights @ flat / weights.sum().clamp_min(1e-9)
            loss = weight * load.loss(mean)
            if self.open:
                self._losses.append(loss)
                self._has_losses = True
            elif self._keeps_gradients and not self._has_losses:
                raise InputError(
                    "gradient checkpointing with use_reentrant=True discards the balance loss of the routers. Use "
                    "gradient_checkpointing_kwargs={'use_reentrant': False}, or balance_weight=0"
                )

    def row_weights(self) -> Tensor | None:
        """(rows,), the number of items in each row; None for 1."""
        return None if self.token_weights is None else self.token_weights.sum(-1)

    def take_loss(self) -> Tensor | None:
        """The weighted balance loss of the last pass, once; None if there is none."""
        loss, self._pending = self._pending, None
        return loss


def token_weights(attention_mask: Tensor | None, labels: Tensor | None) -> Tensor | None:
    """The weight of each token (rows, tokens) in a mean over the items of the task's loss; None for equal weights.

    Args:
        attention_mask: (rows, tokens), 0 for padding.
        labels: (rows, tokens), -100 where no token is learnt; or (rows,) or (rows, k), -100 or NaN for masked rows.
    """
    if labels is not None and labels.ndim == 2 and (attention_mask is None or labels.shape == attention_mask.shape):
        learnt = labels.ne(IGNORED)
        weights = torch.zeros(labels.shape, dtype=torch.float32, device=labels.device)
        weights[:, :-1] = learnt[:, 1:].float()  # a token's output predicts the next label
        return weights
    if attention_mask is None:
        return None
    weights = attention_mask.to(torch.float32)
    if labels is None:
        return weights
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1)
    valid = ~labels.isnan() if labels.is_floating_point() else labels.ne(IGNORED)
    return weights * valid.reshape(len(labels), -1).any(-1, keepdim=True)


@contextmanager
def labels_of_batch(model: nn.Module, labels: Tensor | None) -> Iterator[None]:
    """Give the labels of a batch to the routers of a model, if it has any, where the model itself does not get them.

    Args:
        model: any model.
        labels: (rows, tokens) or (rows,); None for none.
    """
    passes = {id(p): p for m in model.modules() if (p := vars(m).get("mixture_pass")) is not None}.values()
    for forward_pass in passes:
        forward_pass.labels = labels
    try:
        yield
    finally:
        for forward_pass in passes:
            forward_pass.labels = None

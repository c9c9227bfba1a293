"""Add the forward loss of a method, such as a router's load-balancing loss, to the task loss of each micro-batch."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import Trainer

from kasatune.evaluation.causal_loss import IGNORED, learnt_tokens

FORWARD_LOSS = "forward_loss"
"""Key of the forward loss in the Trainer's logs and in history.jsonl."""


class ForwardLossTrainer(Trainer if TYPE_CHECKING else object):
    """Mixin for a transformers Trainer: loss = sum over micro-batches m of task_m + (n_m / N) forward_m.

    n_m is the number of items of a micro-batch, N that of the optimizer step over all processes: examples, or learnt
    tokens if labels are (rows, tokens). The task loss is already divided by N. The loss that the Trainer logs remains
    the task loss; the second sum is logged as `forward_loss`.
    """

    _micro_batch: Tensor | None = None
    _since_last_log: Tensor | None = None

    def forward_loss(self) -> Tensor | None:
        """The method's loss of the last forward pass, a mean over the items of its micro-batch; None without one."""
        raise NotImplementedError

    def items_of_loss(self, inputs: dict[str, Any]) -> int:
        """The items of a micro-batch that the task loss counts."""
        return count_items(inputs["labels"])

    def batch_labels(self, labels: Tensor | None) -> AbstractContextManager[Any]:
        """The context of the forward pass of a micro-batch with these labels."""
        raise NotImplementedError

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of the base Trainer plus, in training, the weighted forward loss."""
        items = self.items_of_loss(inputs)
        with self.batch_labels(_labels(inputs)):  # before the base class pops them
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        forward_loss = self.forward_loss() if model.training else None
        if forward_loss is None:
            return result
        weighted = forward_loss
        if num_items_in_batch is not None:
            weighted = forward_loss * (items / num_items_in_batch)
            if self.args.average_tokens_across_devices:  # the processes' gradients are averaged, N counts all of them
                weighted = weighted * self.accelerator.num_processes
        self._micro_batch = weighted.detach()
        return (result[0] + weighted, result[1]) if isinstance(result, tuple) else result + weighted

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The base's step; returns the task loss of the micro-batch alone."""
        loss = super().training_step(*args, **kwargs)
        if self._micro_batch is None:
            return loss
        earlier, self._micro_batch = self._micro_batch, None
        self._since_last_log = earlier if self._since_last_log is None else self._since_last_log + earlier
        return loss - earlier.to(loss)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The base's log, with the forward loss since the previous log in addition to the task loss."""
        if self._since_last_log is not None and "loss" in logs:
            everywhere: Any = self.accelerator.gather(self._since_last_log)
            logs = {**logs, FORWARD_LOSS: float(everywhere.float().mean())}
            self._since_last_log = None
        super().log(logs, start_time)


def _labels(inputs: dict[str, Any]) -> Tensor | None:
    """The labels of a micro-batch; for pairs of answers, the tokens of the answers."""
    if "labels" in inputs or "completion_mask" not in inputs:
        return inputs.get("labels")
    return inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)


def count_items(labels: Tensor) -> int:
    """The labels of a micro-batch that the task loss counts."""
    if labels.ndim == 2:
        return learnt_tokens(labels)
    return int((~labels.isnan() if labels.is_floating_point() else labels != IGNORED).sum())

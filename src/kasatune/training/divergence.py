"""Handle a loss or gradient that is not finite: the error, and a per-step copy of the weights to undo the step."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from kasatune.distributed.fsdp import sharding_requested
from kasatune.errors import DivergedError
from kasatune.methods.shared.trained_parameters import trainable

_UNDO_LIMIT = 2**24
"""Parameter limit for the per-step undo copy; above it, fall back to the last checkpoint."""


def divergence_error(what: str, step: int) -> DivergedError:
    """The error for `what`, a loss, gradient or update, that is not finite at optimizer step `step`."""
    return DivergedError(
        f"training diverged: {what} is not finite at step {step}; the last good state is kept. "
        "Lower training.learning_rate (or beta and gamma), set training.max_grad_norm, or use precision float32"
    )


class StepUndo:
    """The trained parameters as they were before the last optimizer step.

    A loss that is not finite means that the weights are unusable, even if each of them is finite. No copy is made of a
    sharded model, nor of one with more trained parameters than the limit of this module.

    Args:
        model: the model that is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before: list[torch.Tensor] | None = None

    def save(self) -> None:
        """Copy the trained parameters; called before every optimizer step."""
        parameters = [parameter.detach() for parameter in trainable(self._model).values()]
        if sharding_requested() or sum(parameter.numel() for parameter in parameters) > _UNDO_LIMIT:
            return
        if self._before is None:
            self._before = [torch.empty_like(parameter) for parameter in parameters]
        for before, parameter in zip(self._before, parameters, strict=True):
            before.copy_(parameter)

    def restore(self) -> bool:
        """Restore the trained parameters from before the last optimizer step; False if no copy was made."""
        if self._before is None:
            return False
        for parameter, before in zip(trainable(self._model).values(), self._before, strict=True):
            parameter.detach().copy_(before)
        return True


def weights_are_finite(model: nn.Module, gathered: Path | None) -> bool:
    """Whether the trained weights are finite; false for a sharded model whose weights were not gathered.

    Args:
        model: the trained model.
        gathered: file with the gathered weights of a sharded model.
    """
    if sharding_requested():
        return gathered is not None and all(bool(tensor.isfinite().all()) for tensor in load_file(gathered).values())
    return all(bool(parameter.isfinite().all()) for parameter in trainable(model).values())

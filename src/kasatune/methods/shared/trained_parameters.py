"""The trained parameters of a model: which they are and how many, and whether another model holds the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from kasatune.weights.fingerprint import parameters_sha256


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters with `requires_grad`, by name, in the order of the model."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@dataclass(frozen=True)
class TrainedState:
    """The trained parameters of a model at one time.

    Attributes:
        names: their names.
        digest: SHA-256 of their values.
    """

    names: tuple[str, ...]
    digest: str

    @classmethod
    def of(cls, model: nn.Module) -> TrainedState:
        """The current state of `model`."""
        parameters = trainable(model)
        return cls(tuple(parameters), parameters_sha256(parameters.items()))

    def is_held_by(self, model: nn.Module) -> bool:
        """Whether `model` has parameters of these names, equal bit for bit; they may be frozen in it."""
        parameters = dict(model.named_parameters())
        if any(name not in parameters for name in self.names):
            return False
        return parameters_sha256((name, parameters[name]) for name in self.names) == self.digest


def within(parameter: str, modules: Sequence[str]) -> bool:
    """Whether a parameter belongs to one of `modules`, by name; PEFT may have wrapped the model."""
    name = parameter.removeprefix("module.").removeprefix("base_model.")  # PEFT's prompts wrap without a tuner between
    return any(name.removeprefix("model.").startswith(f"{m}.") or name.startswith(f"{m}.") for m in modules)


def count_trained(model: nn.Module, new_modules: Sequence[str]) -> tuple[int, int]:
    """The numbers of trained parameters outside and inside `new_modules`, the newly initialized modules."""
    outside = inside = 0
    for name, parameter in trainable(model).items():
        if within(name, new_modules):
            inside += parameter.numel()
        else:
            outside += parameter.numel()
    return outside, inside

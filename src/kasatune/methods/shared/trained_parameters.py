"""Which parameters of a model are trained, and how many: the counts in metrics.json, in plans and in comparisons."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters with `requires_grad`, by name, in the order of the model."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


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

"""Mixture-of-experts weights that one parameter holds as a stack of matrices: out of KaSA's reach, and said so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import nn

from kasatune.errors import ModelError

# What the matrices of a feed-forward block are called, by itself or as an expert.
FEED_FORWARD = {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3", "fc1", "fc2"}

INSTEAD = (
    "Target linear layers instead (the attention projections, a shared or dense feed-forward block); the experts "
    "themselves can be adapted with LoRA's target_parameters, in an adapter of its own"
)


class Stack(NamedTuple):
    """A parameter (experts, ., .).

    Args:
        name: of the parameter.
        shape: its three dimensions.
        holder: name of the module that holds it.
        kind: class of that module.
    """

    name: str
    shape: tuple[int, ...]
    holder: str
    kind: str


def stacks(model: nn.Module) -> list[Stack]:
    """Every parameter of a model that holds two or more matrices as one tensor."""
    found = []
    for holder, module in model.named_modules():
        if type(module).__module__.partition(".")[0] == "torch":
            # Convolutions and bilinear layers have three dimensions of their own.
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and min(parameter.shape) > 1:
                full = f"{holder}.{name}" if holder else name
                found.append(Stack(full, tuple(parameter.shape), holder, type(module).__name__))
    return found


def check_experts(model: nn.Module, wanted: Callable[[str], object]) -> None:
    """Refuse a target that means a stack of experts.

    Args:
        model: the model to adapt.
        wanted: whether target_modules takes a name.

    Raises:
        ModelError: target_modules names a stack, or the module that holds it.
    """
    found = stacks(model)
    meant = [stack for stack in found if wanted(stack.name) or (stack.holder and wanted(stack.holder))]
    if meant:
        raise ModelError(f"target_modules names expert weights, which KaSA cannot adapt: {_told(meant)}. {INSTEAD}.")


def report_experts(model: nn.Module, targets: Iterable[str], unmatched: Sequence[str], *, all_linear: bool) -> None:
    """Say that stacks of experts are left out, where the targets let one expect otherwise.

    Args:
        model: the model to adapt.
        targets: names of the layers that are adapted.
        unmatched: entries of target_modules that name no layer.
        all_linear: whether target_modules was "all-linear".

    Raises:
        ModelError: target_modules names layers that the experts were before they were stacked.
    """
    found = stacks(model)
    if not found:
        return
    lost = [name for name in unmatched if name.rpartition(".")[2] in FEED_FORWARD]
    if lost:
        raise ModelError(
            f"target_modules: {', '.join(lost)} matches no layer, because this model stacks its experts: "
            f"{_told(found)}. {INSTEAD}."
        )
    if all_linear or any(name.rpartition(".")[2] in FEED_FORWARD for name in targets):
        warnings.warn(f"the expert weights of this model are not adapted: {_told(found)}. {INSTEAD}.", stacklevel=2)


def _told(found: Sequence[Stack]) -> str:
    first = found[0]
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{first.name} ({first.kind}), {first.shape[0]} matrices in one parameter {list(first.shape)}{more}"

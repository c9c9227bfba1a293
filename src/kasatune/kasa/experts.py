"""Refuse or report mixture-of-experts weights stacked in one parameter, which KaSA cannot adapt."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import nn

from kasatune.errors import ModelError
from kasatune.wording import counted

# Names of the matrices of a feed-forward block, alone or as an expert.
FEED_FORWARD = {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3", "fc1", "fc2"}

INSTEAD = (
    "Target linear layers instead (the attention projections, a shared or dense feed-forward block); the experts "
    "themselves can be adapted with LoRA's target_parameters, in a separate adapter"
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
    stacked: list[Stack] = []
    for holder, module in model.named_modules():
        if type(module).__module__.partition(".")[0] == "torch":
            # Convolutions and bilinear layers have three-dimensional weights that are not stacks.
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and min(parameter.shape) > 1:
                full = f"{holder}.{name}" if holder else name
                stacked.append(Stack(full, tuple(parameter.shape), holder, type(module).__name__))
    return stacked


def check_experts(model: nn.Module, is_target: Callable[[str], object]) -> None:
    """Refuse a target that selects a stack of experts.

    Args:
        model: the model to adapt.
        is_target: whether target_modules selects a name.

    Raises:
        ModelError: target_modules names a stack, or the module that holds it.
    """
    selected = [s for s in stacks(model) if is_target(s.name) or (s.holder and is_target(s.holder))]
    if selected:
        raise ModelError(
            f"target_modules names expert weights, which KaSA cannot adapt: {_described(selected)}. {INSTEAD}."
        )


def report_experts(model: nn.Module, targets: Iterable[str], unmatched: Sequence[str], *, all_linear: bool) -> None:
    """Report that stacks of experts are not adapted, where the targets suggest that they are.

    Args:
        model: the model to adapt.
        targets: names of the layers that are adapted.
        unmatched: entries of target_modules that name no layer.
        all_linear: whether target_modules was "all-linear".

    Raises:
        ModelError: target_modules names the experts' layers as they are called when not stacked.
    """
    stacked = stacks(model)
    if not stacked:
        return
    lost = [name for name in unmatched if name.rpartition(".")[2] in FEED_FORWARD]
    if lost:
        raise ModelError(
            f"target_modules: {', '.join(lost)} matches no layer, because this model stacks its experts: "
            f"{_described(stacked)}. {INSTEAD}."
        )
    if all_linear or any(name.rpartition(".")[2] in FEED_FORWARD for name in targets):
        warnings.warn(
            f"the expert weights of this model are not adapted: {_described(stacked)}. {INSTEAD}.", stacklevel=2
        )


def _described(stacked: Sequence[Stack]) -> str:
    first = stacked[0]
    more = f", and {len(stacked) - 1} more" if len(stacked) > 1 else ""
    return (
        f"{first.name} ({first.kind}), {counted(first.shape[0], 'matrix')} in one parameter {list(first.shape)}{more}"
    )

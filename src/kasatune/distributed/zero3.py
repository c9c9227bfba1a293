"""DeepSpeed ZeRO-3: gather partitioned parameters and optimizer states, and add gradients to the flat buffers.

A parameter p of n elements is partitioned into ceil(n / processes) elements each, in the order of p.flatten(); `p`
itself is empty between uses and carries `ds_id`. Trained parameters are kept in flat float32 buffers, one for each
parameter group of the optimizer, and the optimizer steps the buffers in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

_STEP = "step"
_PENDING: WeakKeyDictionary[Any, dict[str, list[_Piece]]] = WeakKeyDictionary()


class _Piece(NamedTuple):
    """The part of a tensor that this process holds: buffer index, offset in the buffer, values."""

    buffer: int
    start: int
    values: Tensor


class BufferStep(NamedTuple):
    """One call of the optimizer within a ZeRO-3 step.

    Attributes:
        owner: DeepSpeed's optimizer, which wraps the called one.
        number: index of the buffer that is stepped, from 0.
    """

    owner: Any
    number: int

    def holds(self, parameter: Tensor) -> bool:
        """Whether the same optimizer steps `parameter`, in any of its buffers."""
        return getattr(parameter, "_z3_optimizer", None) is self.owner


def is_partitioned(tensor: Tensor) -> bool:
    """Whether ZeRO-3 has partitioned `tensor`."""
    return hasattr(tensor, "ds_id")


def param_id(parameter: Tensor) -> int:
    """The number by which ZeRO-3 identifies a parameter, the same on every process."""
    return parameter.ds_id  # pyright: ignore[reportAttributeAccessIssue]


def full_numel(parameter: Tensor) -> int:
    """The number of elements of the full parameter, over all processes."""
    return getattr(parameter, "ds_numel", parameter.numel())


def gathered(parameter: Tensor) -> Tensor:
    """A copy of the full parameter; a trained one as the optimizer holds it. Every process must call this."""
    owner = getattr(parameter, "_z3_optimizer", None)
    if owner is not None and parameter.requires_grad:
        return owner.get_full_hp_param(parameter)
    with gathered_parameters([parameter]):
        return parameter.detach().clone()


@contextmanager
def gathered_parameters(parameters: Sequence[Tensor]) -> Generator[None]:
    """Hold the full `parameters`, for reading, within the context; every process must enter it.

    Parameters that were never partitioned are left as they are.
    """
    if not any(is_partitioned(parameter) for parameter in parameters):
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(parameters):
        yield


def buffer_step(optimizer: Optimizer, parameters: Iterable[Tensor]) -> BufferStep | None:
    """The buffer of `parameters` that `optimizer` is about to step; None where it holds none of their buffers."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    owners = {id(owner): owner for p in parameters if (owner := getattr(p, "_z3_optimizer", None)) is not None}
    steps = (
        BufferStep(owner, number)
        for owner in owners.values()
        for number, flat in enumerate(owner.fp32_partitioned_groups_flat)
        if id(flat) in held
    )
    return next(steps, None)


def add_gradients(step: BufferStep, key: str, compute: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
    """Add gradients to those of the buffer that is stepped.

    `compute` is called once per optimizer step, before the first buffer changes.

    Args:
        step: from `buffer_step`.
        key: distinguishes the gradients of several callers.
        compute: returns trained parameters and their gradients, full and the same on every process.
    """
    owner, number = step
    pending = _PENDING.setdefault(owner, {})
    if number == 0:
        pending[key] = [_own_piece(owner, parameter, gradient) for parameter, gradient in compute()]
    with torch.no_grad():
        flat = owner.fp32_partitioned_groups_flat[number].grad
        for buffer, start, values in pending[key]:
            if buffer == number:
                flat.narrow(0, start, values.numel()).add_(values.to(flat))
    if number == len(owner.fp32_partitioned_groups_flat) - 1:
        del pending[key]


def optimizer_state(parameter: Tensor) -> dict[str, Tensor]:
    """The full optimizer state of a trained parameter; empty before the first step. Every process must call this."""
    owner: Any = parameter._z3_optimizer  # pyright: ignore[reportAttributeAccessIssue]
    flat, _, _ = _position(parameter)
    return {
        key: torch.as_tensor(value).clone() if key == _STEP else owner.get_full_hp_param(parameter, key)
        for key, value in owner.optimizer.state.get(flat, {}).items()
    }


def load_optimizer_state(parameter: Tensor, key: str, value: Tensor) -> None:
    """Restore one entry of the state that `optimizer_state` returned, under any number of processes."""
    owner: Any = parameter._z3_optimizer  # pyright: ignore[reportAttributeAccessIssue]
    flat, _, _ = _position(parameter)
    state = owner.optimizer.state[flat]
    if key == _STEP:
        state[key] = value
        return
    if key not in state:
        state[key] = torch.zeros_like(flat, requires_grad=False)
    _, start, values = _own_piece(owner, parameter, value)
    state[key].narrow(0, start, values.numel()).copy_(values)


def _position(parameter: Tensor) -> tuple[Tensor, int, int]:
    """The buffer that holds this process's piece of a trained parameter, the offset of the piece, and its length."""
    owner: Any = parameter._z3_optimizer  # pyright: ignore[reportAttributeAccessIssue]
    buffer, start, size = owner.grad_position[owner.get_param_id(parameter)]
    return owner.fp32_partitioned_groups_flat[buffer], start, size


def _own_piece(owner: Any, parameter: Tensor, full: Tensor) -> _Piece:
    """This process's piece of a full tensor in the shape of `parameter`, without the padding of the last piece."""
    buffer, start, size = owner.grad_position[owner.get_param_id(parameter)]
    group = parameter.ds_process_group  # pyright: ignore[reportAttributeAccessIssue]
    rank = torch.distributed.get_rank(group)
    return _Piece(buffer, start, full.detach().flatten()[rank * size : (rank + 1) * size].clone())

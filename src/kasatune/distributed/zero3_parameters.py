"""Parameters that DeepSpeed's ZeRO-3 deals out over processes: gathered, and the pieces that one step changes.

A parameter p of n numbers is dealt out as ceil(n / processes) numbers each, in the order of p.flatten(); `p` itself is
empty between uses and carries `ds_id`. What is trained lies in flat buffers of float32, one for each group of the
optimizer, and the optimizer steps one buffer after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

_STEP = "step"
_WAITING: WeakKeyDictionary[Any, dict[str, list[_Piece]]] = WeakKeyDictionary()


class _Piece(NamedTuple):
    buffer: int
    start: int
    values: Tensor


class Step(NamedTuple):
    """One call of the optimizer within a step of ZeRO-3.

    Attributes:
        owner: DeepSpeed's optimizer, around the one that is called.
        number: of the buffer that is stepped, from 0.
    """

    owner: Any
    number: int

    def holds(self, parameter: Tensor) -> bool:
        """Whether the same optimizer steps `parameter`, in whichever buffer."""
        return getattr(parameter, "_z3_optimizer", None) is self.owner


def is_dealt_out(tensor: Tensor) -> bool:
    """Whether ZeRO-3 holds the numbers of `tensor`."""
    return hasattr(tensor, "ds_id")


def place(parameter: Tensor) -> int:
    """The number under which ZeRO-3 knows a parameter, the same on every process."""
    return parameter.ds_id  # type: ignore[attr-defined]


def numbers(parameter: Tensor) -> int:
    """How many numbers a parameter has on all processes together."""
    return getattr(parameter, "ds_numel", parameter.numel())


def gathered(parameter: Tensor) -> Tensor:
    """A copy of all of a parameter, of a trained one as the optimizer holds it; every process must ask for it."""
    owner = getattr(parameter, "_z3_optimizer", None)
    if owner is not None and parameter.requires_grad:
        return owner.get_full_hp_param(parameter)
    with all_gathered([parameter]):
        return parameter.detach().clone()


@contextmanager
def all_gathered(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Within it `parameters` are whole, to be read, as all are that were never dealt out; every process must enter."""
    if not any(is_dealt_out(parameter) for parameter in parameters):
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(parameters):
        yield


def step_of(optimizer: Optimizer, parameters: Iterable[Tensor]) -> Step | None:
    """What `optimizer` is about to step for ZeRO-3; None where it holds none of its buffers of `parameters`."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    owners = {id(owner): owner for p in parameters if (owner := getattr(p, "_z3_optimizer", None)) is not None}
    steps = (
        Step(o, i) for o in owners.values() for i, flat in enumerate(o.fp32_partitioned_groups_flat) if id(flat) in held
    )
    return next(steps, None)


def add_gradients(step: Step, key: str, compute: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
    """Add gradients to those of the buffer that is stepped: computed before the first buffer changes, once a step.

    Args:
        step: see `step_of`.
        key: tells apart what is added by several callers.
        compute: gives trained parameters and their gradients, whole and the same on every process.
    """
    owner, number = step
    waiting = _WAITING.setdefault(owner, {})
    if number == 0:
        waiting[key] = [_own_piece(owner, parameter, gradient) for parameter, gradient in compute()]
    with torch.no_grad():
        flat = owner.fp32_partitioned_groups_flat[number].grad
        for buffer, start, values in waiting[key]:
            if buffer == number:
                flat.narrow(0, start, values.numel()).add_(values.to(flat))
    if number == len(owner.fp32_partitioned_groups_flat) - 1:
        del waiting[key]


def optimizer_state(parameter: Tensor) -> dict[str, Tensor]:
    """The optimizer's state of a trained parameter, whole; every process must ask. Empty before the first step."""
    owner: Any = parameter._z3_optimizer  # type: ignore[attr-defined]
    flat, _, _ = _lies_in(parameter)
    return {
        key: torch.as_tensor(value).clone() if key == _STEP else owner.get_full_hp_param(parameter, key)
        for key, value in owner.optimizer.state.get(flat, {}).items()
    }


def put_optimizer_state(parameter: Tensor, key: str, value: Tensor) -> None:
    """Take back an entry that `optimizer_state` gave, on however many processes."""
    owner: Any = parameter._z3_optimizer  # type: ignore[attr-defined]
    flat, _, _ = _lies_in(parameter)
    state = owner.optimizer.state[flat]
    if key == _STEP:
        state[key] = value
        return
    if key not in state:
        state[key] = torch.zeros_like(flat, requires_grad=False)
    _, start, values = _own_piece(owner, parameter, value)
    state[key].narrow(0, start, values.numel()).copy_(values)


def _lies_in(parameter: Tensor) -> tuple[Tensor, int, int]:
    """The buffer that a trained parameter lies in on this process, where its piece begins, and how long that is."""
    owner: Any = parameter._z3_optimizer  # type: ignore[attr-defined]
    buffer, start, size = owner.grad_position[owner.get_param_id(parameter)]
    return owner.fp32_partitioned_groups_flat[buffer], start, size


def _own_piece(owner: Any, parameter: Tensor, whole: Tensor) -> _Piece:
    """This process's piece of a tensor in the shape of a parameter; what fills the last piece up is left out."""
    buffer, start, size = owner.grad_position[owner.get_param_id(parameter)]
    rank = torch.distributed.get_rank(parameter.ds_process_group)  # type: ignore[attr-defined]
    return _Piece(buffer, start, whole.detach().flatten()[rank * size : (rank + 1) * size].clone())

"""Bi-level training as in DARTS: hold back training rows, and train a few outer parameters on them alone.

The alternating first-order scheme of Liu et al., arXiv 1806.09055, section 2.3 with xi = 0: an outer step descends on
the loss of held-back rows in the outer parameters, an inner step on the loss of the other rows in all other parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch.utils.data import Sampler

from kasatune.data.length_groups import order_by_length_groups
from kasatune.errors import DataError
from kasatune.methods.shared.method import Method, MethodSettings
from kasatune.wording import counted

HELD_BACK = "held_back"
"""Key in the Trainer's logs and in history.jsonl: 1 for an optimizer step on held-back rows, 0 for another."""


class BilevelSampler(Sampler[int]):
    """The order of the rows of an epoch, in which each optimizer step has held-back rows only, or none of them.

    Of the S = ceil(rows / batch_size) steps of an epoch, floor(share S) are outer ones, spread evenly. Which rows are
    held back is drawn from the seed and is the same in every epoch; rows of equal content are on the same side. Every
    row occurs once in an epoch, unless equal rows do not divide that way: then the held-back rows are a few too many,
    each epoch leaves out some of them, and repeats as many others.

    Args:
        rows: the tokenized rows.
        batch_size: rows of an optimizer step.
        share: of the steps that are outer ones, above 0 and at most 0.5.
        seed: of the run.
        epoch: returns the number of the epoch that begins, or is resumed.
        lengths: tokens of each row, to group rows of similar length; None for a random order.

    Attributes:
        steps: S.
        held_back: the indices of the held-back rows.

    Raises:
        DataError: all rows are equal.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        batch_size: int,
        share: float,
        seed: int,
        epoch: Callable[[], int],
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.steps = math.ceil(len(rows) / batch_size)
        self._number = len(rows)
        self._batch_size = batch_size
        self._outer = outer_steps(len(rows), batch_size, share)
        self._seed = seed
        self._epoch = epoch
        self._lengths = lengths
        self.held_back = _draw(rows, self._outer * batch_size, seed)
        if not self.held_back:
            raise DataError(
                "method.options.held_back: the training rows are all equal, so none can be held back; set 0"
            )
        self._others = sorted(set(range(len(rows))).difference(self.held_back))

    def __len__(self) -> int:
        return self._number

    def is_outer(self, step: int) -> bool:
        """Whether an optimizer step, counted from 0 over all epochs, trains the outer parameters."""
        place, S, outer = step % self.steps, self.steps, self._outer
        return (2 * (place + 1) * outer + S) // (2 * S) > (2 * place * outer + S) // (2 * S)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch())
        number = self._outer * self._batch_size
        outer = iter(self._order(self.held_back, number, generator))
        inner = iter(self._order(self._others, self._number - number, generator))
        for step in range(self.steps):
            yield from islice(outer if self.is_outer(step) else inner, self._batch_size)

    def _order(self, rows: Sequence[int], number: int, generator: torch.Generator) -> list[int]:
        """`number` of the rows in a random order, each once before one is repeated."""
        drawn = torch.randperm(len(rows), generator=generator).tolist()
        order = [rows[index] for index in islice(cycle(drawn), number)]
        if self._lengths is None:
            return order
        lengths = [self._lengths[row] for row in order]
        return [order[index] for index in order_by_length_groups(lengths, self._batch_size, generator)]


def outer_steps(rows: int, batch_size: int, share: float) -> int:
    """The number of outer steps in an epoch: floor(share S) of its S = ceil(rows / batch_size) steps."""
    return math.floor(round(share * math.ceil(rows / batch_size), 9))


def held_back_fault(method: Method, settings: MethodSettings, rows: int, batch_size: int) -> str | None:
    """Why a method cannot hold back rows for bi-level training of so few rows; None if it can, or holds back none.

    Args:
        method: the method.
        settings: the recipe's section `method`.
        rows: number of training rows.
        batch_size: rows of an optimizer step.
    """
    share = method.held_back(settings)
    if not share or outer_steps(rows, batch_size, share):
        return None
    steps = math.ceil(rows / batch_size)
    return (
        f"method.options.held_back: {share:g} received; of the {counted(steps, 'step')} of an epoch none is left for "
        f"held-back rows ({counted(rows, 'row')} in batches of {batch_size}); raise it, lower training.batch_size, or "
        "give more rows"
    )


def _draw(rows: Sequence[Mapping[str, Any]], number: int, seed: int) -> list[int]:
    """The indices of at least `number` rows, drawn at random; rows of equal content are drawn together."""
    groups: dict[str, list[int]] = {}
    for index in range(len(rows)):
        groups.setdefault(repr(sorted(rows[index].items())), []).append(index)
    members = list(groups.values())
    drawn: list[int] = []
    for place in torch.randperm(len(members), generator=torch.Generator().manual_seed(seed)).tolist():
        if len(drawn) >= number or len(drawn) + len(members[place]) == len(rows):
            break
        drawn += members[place]
    return sorted(drawn)

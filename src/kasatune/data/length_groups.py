"""Group rows of similar length into batches, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

POOL = 50
"""Batches whose rows are drawn together and sorted by length."""


def order_by_length_groups(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[int]:
    """An order of the rows in which consecutive `batch_size` rows have similar lengths.

    The rows are shuffled and cut into pools of `POOL` batches; each pool is sorted by length and cut into batches, and
    the batches of all pools are shuffled. Every row occurs once; the batch that is not full comes last.

    Args:
        lengths: tokens of each row.
        batch_size: rows of an optimizer step.
        generator: source of the random numbers.
    """
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    size = batch_size * POOL
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), size):
        pool = sorted(shuffled[start : start + size], key=lambda row: lengths[row], reverse=True)
        batches += [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
    rest = batches.pop() if batches and len(batches[-1]) < batch_size else []
    order = torch.randperm(len(batches), generator=generator).tolist()
    return [row for batch in order for row in batches[batch]] + rest


class LengthGroupSampler(Sampler[int]):
    """Rows in the order of `order_by_length_groups`, another one in each epoch.

    Args:
        lengths: tokens of each row.
        batch_size: rows of an optimizer step.
        seed: of the run.
        epoch: returns the number of the epoch that begins, or is resumed.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch())
        return iter(order_by_length_groups(self._lengths, self._batch_size, generator))

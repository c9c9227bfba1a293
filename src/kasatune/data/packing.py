"""Pack tokenized rows into sequences: several prompts and completions in one row, each with its own position ids."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kasatune.data.collate import pad
from kasatune.data.prompt_completion import IGNORED
from kasatune.data.tokenize import Examples

POSITIONS = "position_ids"


def assign_to_sequences(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """The rows of each packed sequence, by best-fit decreasing: longest rows first, each where it leaves least room.

    Args:
        lengths: tokens of each row, at most `max_length`.
        max_length: tokens of the longest sequence.
    """
    sequences: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, number of the sequence), sorted
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        place = bisect_left(room, (lengths[row], -1))
        left, number = room.pop(place) if place < len(room) else (max_length, len(sequences))
        if number == len(sequences):
            sequences.append([])
        sequences[number].append(row)
        insort(room, (left - lengths[row], number))
    return sequences


def pack(examples: Examples, max_length: int) -> Examples:
    """Rows of `examples` in sequences of at most `max_length` tokens, with `input_ids`, `position_ids` and `labels`.

    Position ids start at 0 in each row, from which transformers derives attention within rows alone. The first label of
    a row is `IGNORED`: no token of that row predicts it. No row is cut.
    """
    rows = examples.rows
    packed = []
    for members in assign_to_sequences([len(row["input_ids"]) for row in rows], max_length):
        chosen = [rows[member] for member in members]
        packed.append(
            {
                "input_ids": list(chain.from_iterable(row["input_ids"] for row in chosen)),
                POSITIONS: list(chain.from_iterable(range(len(row["input_ids"])) for row in chosen)),
                "labels": list(chain.from_iterable([IGNORED, *row["labels"][1:]] for row in chosen)),
            }
        )
    return Examples(packed, frozenset())


class PackedCollator:
    """Pad packed sequences on the right, to the longest of a batch; there is no attention mask.

    Padding is a row of its own: its position ids start at 0, so that no other token attends to it.

    Args:
        tokenizer: gives the padding token; its label is `IGNORED`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._padding: Any = tokenizer.pad_token_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A tensor (rows, tokens) for each key of the rows."""
        longest = max(len(row["input_ids"]) for row in rows)
        positions = [[*row[POSITIONS], *range(longest - len(row[POSITIONS]))] for row in rows]
        return {
            "input_ids": pad([row["input_ids"] for row in rows], self._padding),
            POSITIONS: pad(positions, 0),
            "labels": pad([row["labels"] for row in rows], IGNORED),
        }

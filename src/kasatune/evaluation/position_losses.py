"""Loss per token position: the mean loss of a language model by place in the answer."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from kasatune.data.prompt_completion import IGNORED


class PositionLosses:
    """Mean loss of the 1st, 2nd, 3rd to 4th, 5th to 8th, ... labelled token of each row.

    The ranges double, so that the mean of a later one is over more tokens of fewer rows.
    """

    def __init__(self) -> None:
        self._sums: list[float] = []
        self._tokens: list[int] = []
        self._longest = 0

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            logits: (n, vocabulary), at the n positions whose target is not `IGNORED`, row by row.
            targets: (rows, tokens), the token that each position predicts.
        """
        counts = (targets != IGNORED).sum(1).tolist()
        labels = targets[targets != IGNORED].split(counts)
        # Row by row: a float32 copy of the logits of a complete batch may be larger than the model.
        for row, label in zip(logits.split(counts), labels, strict=True):
            if not len(label):
                continue
            losses = functional.cross_entropy(row.float(), label, reduction="none").double().cpu()
            self._longest = max(self._longest, len(losses))
            for place, part in enumerate(losses.split(_widths(len(losses)))):
                if place == len(self._sums):
                    self._sums.append(0.0)
                    self._tokens.append(0)
                self._sums[place] += float(part.sum())
                self._tokens[place] += len(part)

    def means(self) -> list[dict[str, Any]]:
        """One entry for each range with a token.

        Returns:
            `first` and `last` position, counted from 1; `tokens` in the range over all rows; `loss`, in nats.
        """
        lasts = [min(2**place, self._longest) for place in range(len(self._sums))]
        firsts = [last + 1 for last in (0, *lasts[:-1])][: len(lasts)]
        return [
            {"first": first, "last": last, "tokens": tokens, "loss": total / tokens}
            for first, last, tokens, total in zip(firsts, lasts, self._tokens, self._sums, strict=True)
        ]


def _widths(tokens: int) -> list[int]:
    """The numbers of tokens of a row in the ranges 1, 2, 3 to 4, 5 to 8, ...; they add up to `tokens`."""
    widths: list[int] = []
    last = 0
    while last < tokens:
        end = min(max(1, 2 * last), tokens)
        widths.append(end - last)
        last = end
    return widths

"""What a run reports of its progress to whoever watches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Display(Protocol):
    """Receiver of a run's progress; the command line shows it, a notebook may do something else."""

    def start(self, total_steps: int, title: str) -> None:
        """A run of `total_steps` optimizer steps begins."""
        ...

    def step(self, step: int, epoch: float, loss: float | None, learning_rate: float | None) -> None:
        """Optimizer step `step` (from 1) is done; None where the value is not known at this step."""
        ...

    def evaluated(self, epoch: float, metrics: Mapping[str, float]) -> None:
        """The state at `epoch` has been evaluated."""
        ...

    def progress(self, what: str, done: int, total: int) -> None:
        """Of work outside of training `done` of `total` are done: layers decomposed, texts written; begins with 0."""
        ...

    def message(self, text: str) -> None:
        """One line that the user should see: what was defaulted, ignored, truncated or kept."""
        ...

    def finish(self) -> None:
        """The run is over, whether well or not."""
        ...

from __future__ import annotations

from collections.abc import Mapping


class Silent:
    """A display that shows nothing."""

    def start(self, total_steps: int, title: str) -> None:
        """Nothing."""

    def step(self, step: int, epoch: float, loss: float | None, learning_rate: float | None) -> None:
        """Nothing."""

    def evaluated(self, epoch: float, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""

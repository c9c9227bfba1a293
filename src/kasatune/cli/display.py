"""A run's progress as a person likes to see it: a live bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kasatune.runs.display import Display

_LINES_PER_RUN = 20


def make_display() -> Display:
    """The display that fits standard error."""
    return LiveDisplay() if sys.stderr.isatty() else LineDisplay()


class LiveDisplay:
    """One bar that is redrawn in place, with messages and scores as lines above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        self._task = None
        self._loss = self._score = self._epoch = ""

    def start(self, total_steps: int, title: str) -> None:
        """See `Display.start`."""
        self._loss = self._score = self._epoch = ""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(title, total=total_steps, state="")
        self._progress.start()

    def step(self, step: int, epoch: float, loss: float | None, learning_rate: float | None) -> None:
        """See `Display.step`."""
        self._epoch = f"epoch {epoch:.1f}"
        if loss is not None:
            self._loss = f"loss {loss:.4f}"
        self._show(step)

    def evaluated(self, epoch: float, metrics: Mapping[str, float]) -> None:
        """See `Display.evaluated`."""
        self._score = next(iter(_scores(metrics)), "")
        self.message(f"epoch {epoch:g}: {', '.join(_scores(metrics))}")
        self._show(None)

    def message(self, text: str) -> None:
        """See `Display.message`."""
        from rich.text import Text

        self._progress.console.print(Text(text), soft_wrap=True)

    def finish(self) -> None:
        """See `Display.finish`."""
        self._progress.stop()
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def _show(self, step: int | None) -> None:
        if self._task is not None:
            state = "  ".join(part for part in (self._epoch, self._loss, self._score) if part)
            self._progress.update(self._task, completed=step, state=state)


class LineDisplay:
    """About twenty lines a run, each complete in itself, for log files and pipes."""

    def __init__(self) -> None:
        self._total = 0
        self._every = 1
        self._begun = 0.0

    def start(self, total_steps: int, title: str) -> None:
        """See `Display.start`."""
        self._total = total_steps
        self._every = max(1, math.ceil(total_steps / _LINES_PER_RUN))
        self._begun = time.monotonic()
        self.message(f"{title}: {total_steps:,} steps")

    def step(self, step: int, epoch: float, loss: float | None, learning_rate: float | None) -> None:
        """See `Display.step`."""
        if step % self._every and step != self._total:
            return
        left = (time.monotonic() - self._begun) / step * (self._total - step)
        parts = [f"step {step}/{self._total}", f"epoch {epoch:.2f}"]
        if loss is not None:
            parts.append(f"loss {loss:.4f}")
        if learning_rate is not None:
            parts.append(f"learning rate {learning_rate:.2e}")
        self.message("  ".join([*parts, f"{_clock(left)} left"]))

    def evaluated(self, epoch: float, metrics: Mapping[str, float]) -> None:
        """See `Display.evaluated`."""
        self.message(f"epoch {epoch:g}: {', '.join(_scores(metrics))}")

    def message(self, text: str) -> None:
        """See `Display.message`."""
        print(text, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """See `Display.finish`."""


def _scores(metrics: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4f}" for name, value in metrics.items()]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"

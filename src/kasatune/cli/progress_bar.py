"""Progress display of the command line: a live bar on a terminal, about twenty plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kasatune import wording
from kasatune.redaction import presentable

if TYPE_CHECKING:
    from rich.progress import TaskID

    from kasatune.io.progress import ProgressReporter

_LINES_PER_RUN = 20
# Work outside training is shown after this time; as lines, at this interval.
_QUICK_SECONDS = 1.0
_SECONDS_BETWEEN_LINES = 10.0
_UNITS = {"writing": "text"}  # other work counts layers


def make_progress() -> ProgressReporter:
    """The reporter that suits standard error."""
    return LiveProgress() if sys.stderr.isatty() else LineProgress()


@dataclass
class _Work:
    """Work outside training that is in progress.

    Units done so far, its bar if one is shown, and the time of its last line.
    """

    what: str
    done: int = 0
    task: TaskID | None = None
    printed_at: float = 0.0
    begun: float = field(default_factory=lambda: time.monotonic())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun


class LiveProgress:
    """A bar that is redrawn in place, with messages and scores as lines above it."""

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
        self._work: _Work | None = None
        self._loss = self._score = self._epoch = ""

    def start(self, total_steps: int, title: str) -> None:
        """See `ProgressReporter.start`."""
        self._loss = self._score = self._epoch = ""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(title, total=total_steps, state="")
        self._progress.start()

    def step(self, step: int, epoch: float, loss: float | None, learning_rate: float | None) -> None:
        """See `ProgressReporter.step`."""
        self._epoch = f"epoch {epoch:.1f}"
        if loss is not None:
            self._loss = f"loss {loss:.4f}"
        self._show(step)

    def evaluated(self, epoch: float, metrics: Mapping[str, float]) -> None:
        """See `ProgressReporter.evaluated`."""
        self._score = next(iter(_scores(metrics)), "")
        self.message(f"epoch {wording.epoch(epoch)}: {', '.join(_scores(metrics))}")
        self._show(None)

    def progress(self, what: str, done: int, total: int) -> None:
        """See `ProgressReporter.progress`."""
        if self._work is None or self._work.what != what or done < self._work.done:
            self._work = _Work(what)
        work = self._work
        work.done = done
        if work.task is None and done < total and work.seconds > _QUICK_SECONDS:
            work.task = self._progress.add_task(what, total=total, state=f"{_UNITS.get(what, 'layer')}s")
            self._progress.start()
        if work.task is not None:
            self._progress.update(work.task, completed=done)
        if done == total:
            self._end_work()

    def message(self, text: str) -> None:
        """See `ProgressReporter.message`."""
        from rich.text import Text

        self._progress.console.print(Text(presentable(text)), soft_wrap=True)

    def finish(self) -> None:
        """See `ProgressReporter.finish`."""
        self._end_work()
        self._progress.stop()
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def _end_work(self) -> None:
        if self._work is not None and self._work.task is not None:
            self._progress.remove_task(self._work.task)
        self._work = None

    def _show(self, step: int | None) -> None:
        if self._task is not None:
            state = "  ".join(part for part in (self._epoch, self._loss, self._score) if part)
            self._progress.update(self._task, completed=step, state=state)


class LineProgress:
    """About twenty lines per run, each complete, for log files and pipes."""

    def __init__(self) -> None:
        self._total = 0
        self._every = 1
        self._begun = 0.0
        self._work: _Work | None = None

    def start(self, total_steps: int, title: str) -> None:
        """See `ProgressReporter.start`."""
        self._total = total_steps
        self._every = max(1, math.ceil(total_steps / _LINES_PER_RUN))
        self._begun = time.monotonic()
        self.message(f"{title}: {wording.counted(total_steps, 'step')}")

    def step(self, step: int, epoch: float, loss: float | None, learning_rate: float | None) -> None:
        """See `ProgressReporter.step`."""
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
        """See `ProgressReporter.evaluated`."""
        self.message(f"epoch {wording.epoch(epoch)}: {', '.join(_scores(metrics))}")

    def progress(self, what: str, done: int, total: int) -> None:
        """See `ProgressReporter.progress`."""
        if self._work is None or self._work.what != what or done < self._work.done:
            self._work = _Work(what)
        work, unit = self._work, _UNITS.get(what, "layer")
        work.done = done
        if done == total:
            if work.printed_at:
                self.message(f"{what}: {wording.counted(total, unit)} done in {_clock(work.seconds)}")
            self._work = None
        elif done and work.seconds > (work.printed_at + _SECONDS_BETWEEN_LINES if work.printed_at else _QUICK_SECONDS):
            work.printed_at = work.seconds
            left = work.seconds / done * (total - done)
            self.message(f"{what}: {done} of {wording.counted(total, unit)}  {_clock(left)} left")

    def message(self, text: str) -> None:
        """See `ProgressReporter.message`."""
        print(presentable(text), file=sys.stderr, flush=True)

    def finish(self) -> None:
        """See `ProgressReporter.finish`."""


def _scores(metrics: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4f}" for name, value in metrics.items()]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"

"""Write report.html while a run is in progress: at most every quarter of a minute, and rarely for a slow disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kasatune.errors import KasatuneError
from kasatune.io.run_layout import RECIPE

if TYPE_CHECKING:
    from kasatune.io.progress import ProgressReporter

SECONDS = 15.0
_SHARE = 0.01
"""Share of the run time that writing the page may take."""


class LiveReport:
    """A `ProgressReporter` that also writes the report of an unfinished run.

    Args:
        display: receives everything.
        run_dir: the run directory.
    """

    def __init__(self, display: ProgressReporter, run_dir: Path) -> None:
        self._display, self._run_dir = display, run_dir
        self._next = time.monotonic() + SECONDS
        self._written = False

    def start(self, total_steps: int, title: str) -> None:
        """See `ProgressReporter.start`."""
        self._display.start(total_steps, title)

    def step(self, step: int, epoch: float, loss: float | None, learning_rate: float | None) -> None:
        """See `ProgressReporter.step`."""
        self._display.step(step, epoch, loss, learning_rate)
        if time.monotonic() >= self._next:
            self._write(running=True)

    def evaluated(self, epoch: float, metrics: Mapping[str, float]) -> None:
        """See `ProgressReporter.evaluated`."""
        self._display.evaluated(epoch, metrics)

    def progress(self, what: str, done: int, total: int) -> None:
        """See `ProgressReporter.progress`."""
        self._display.progress(what, done, total)

    def message(self, text: str) -> None:
        """See `ProgressReporter.message`."""
        self._display.message(text)

    def finish(self) -> None:
        """See `ProgressReporter.finish`; a page that was written stops reloading itself."""
        if self._written:
            self._write(running=False)
        self._display.finish()

    def _write(self, *, running: bool) -> None:
        from kasatune.reports.run_page import write_live_report

        begun = time.monotonic()
        # The run is not worth stopping for its page; the final page reports the error.
        with suppress(OSError, KasatuneError):
            if (self._run_dir / RECIPE).is_file():
                write_live_report(self._run_dir, running=running)
                self._written = True
        now = time.monotonic()
        self._next = now + max(SECONDS, (now - begun) / _SHARE)

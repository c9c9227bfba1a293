"""Progress reporting: the protocol that shows a run's progress, and counters for work that a caller waits for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

Listener = Callable[[str, int, int], None]
"""Called as listener(what, done, total), first with done = 0."""

_listener: ContextVar[Listener | None] = ContextVar("kasatune_progress", default=None)
_HIDDEN_SECONDS = 1.0


class ProgressReporter(Protocol):
    """Receives the progress of a run; the command line shows it, a notebook may do something else."""

    def start(self, total_steps: int, title: str) -> None:
        """A run of `total_steps` optimizer steps begins."""
        ...

    def step(self, step: int, epoch: float, loss: float | None, learning_rate: float | None) -> None:
        """Optimizer step `step` (from 1) is done; a value that is not known at this step is None."""
        ...

    def evaluated(self, epoch: float, metrics: Mapping[str, float]) -> None:
        """The model has been evaluated after `epoch` epochs."""
        ...

    def progress(self, what: str, done: int, total: int) -> None:
        """`done` of `total` units of work outside training are done (layers decomposed, texts generated); 0 first."""
        ...

    def message(self, text: str) -> None:
        """One line that the user should see: what was defaulted, ignored, truncated or kept."""
        ...

    def finish(self) -> None:
        """The run has ended, successfully or not."""
        ...


class NullProgress:
    """A `ProgressReporter` that shows nothing."""

    def start(self, total_steps: int, title: str) -> None:
        """Do nothing."""

    def step(self, step: int, epoch: float, loss: float | None, learning_rate: float | None) -> None:
        """Do nothing."""

    def evaluated(self, epoch: float, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


@contextmanager
def progress_listener(listener: Listener) -> Generator[None]:
    """Within this context, every `progress_counter` reports to `listener` and shows no bar."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def progress_counter(what: str, total: int) -> Generator[Callable[[], None]]:
    """Count units of work, such as layers or texts: yields a function to call after each.

    Without a listener, a terminal shows a tqdm bar once the work has taken longer than a second, unless the progress
    bars of transformers are disabled.

    Args:
        what: the work, in a word or two.
        total: number of units.
    """
    listener = _listener.get()
    done = 0
    if listener is not None:

        def report() -> None:
            nonlocal done
            done += 1
            listener(what, done, total)

        listener(what, 0, total)
        yield report
        return
    from tqdm.auto import tqdm
    from transformers.utils.logging import is_progress_bar_enabled

    disable = None if is_progress_bar_enabled() else True  # None: disabled where there is no terminal
    with tqdm(total=total, desc=what, delay=_HIDDEN_SECONDS, leave=False, disable=disable) as bar:

        def show() -> None:
            bar.update()

        yield show

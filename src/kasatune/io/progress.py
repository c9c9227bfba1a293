"""Progress of work that a caller waits for: shown by tqdm once it takes longer than a second, or told to a listener."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm.auto import tqdm
from transformers.utils.logging import is_progress_bar_enabled

Listener = Callable[[str, int, int], None]
"""Called as listener(what, done, total), first with done = 0."""

_listener: ContextVar[Listener | None] = ContextVar("kasatune_progress", default=None)
_SILENT_SECONDS = 1.0


@contextmanager
def progress_told_to(listener: Listener) -> Iterator[None]:
    """Within this context, progress goes to `listener` and no bar is shown."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Count layers or texts: gives a function to be called after each.

    Without a listener a bar of tqdm stands on a terminal while the work takes longer than a second; none where
    transformers' progress bars are switched off.

    Args:
        what: is done, in a word or two.
        total: their number.
    """
    listener = _listener.get()
    done = 0
    if listener is not None:

        def tell() -> None:
            nonlocal done
            done += 1
            listener(what, done, total)

        listener(what, 0, total)
        yield tell
        return
    hidden = None if is_progress_bar_enabled() else True  # None: hidden where there is no terminal
    with tqdm(total=total, desc=what, delay=_SILENT_SECONDS, leave=False, disable=hidden) as bar:

        def show() -> None:
            bar.update()

        yield show

"""Ctrl-C and SIGTERM during a run: the first stops it at a resumable step, the second at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Context that turns the first Ctrl-C into a request to stop; the second raises KeyboardInterrupt at once.

    SIGTERM, which batch queues send before SIGKILL, counts as Ctrl-C unless another handler is installed for it.
    Outside the main thread signals cannot be caught, and `requested` stays false.

    Args:
        on_request: called once, at the first signal.

    Attributes:
        requested: whether a signal has asked the run to stop.
    """

    def __init__(self, on_request: Callable[[], None]) -> None:
        self.requested = False
        self._on_request = on_request
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
                self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._request)
            if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
                self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _request(self, number: int, frame: FrameType | None) -> None:
        first = not self.requested
        self.requested = True
        signal.signal(number, signal.default_int_handler)
        if first:
            self._on_request()

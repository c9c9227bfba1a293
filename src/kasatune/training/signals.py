from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """The first Ctrl-C asks a run to stop at the next step that it can be resumed from; a second stops it at once.

    A request to terminate, SIGTERM, which queues send before they kill, counts as the first Ctrl-C, where nobody else
    answers it. Use as a context. Outside the main thread, where signals cannot be caught, `requested` stays false.

    Args:
        on_request: called once, when the first Ctrl-C comes.
    """

    def __init__(self, on_request: Callable[[], None]) -> None:
        self.requested = False
        self._on_request = on_request
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._request)
            if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
                self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _request(self, number: int, frame: FrameType | None) -> None:
        first = not self.requested
        self.requested = True
        signal.signal(number, signal.default_int_handler)
        if first:
            self._on_request()

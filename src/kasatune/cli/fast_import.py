"""Faster imports of torch and transformers: the garbage collector is paused meanwhile."""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def large_libraries() -> Generator[None]:
    """Pause the garbage collector around the imports of a command: it takes a quarter of their time.

    The imported objects live until the process ends, so later collections skip them too (`gc.freeze`). If torch is
    already imported, as in a program that calls the commands, nothing is changed.
    """
    if "torch" in sys.modules:
        yield
        return
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()

"""Large libraries are imported without the garbage collector looking through them again and again."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def large_libraries() -> Iterator[None]:
    """Around the imports of a command that computes: a quarter of their time is the collector's.

    What was imported is needed to the end of the process, so that the collector leaves it out of every later pass too.
    Where torch is there already, as in a program that calls the commands, nothing is changed.
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

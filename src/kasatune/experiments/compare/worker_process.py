from __future__ import annotations

from typing import Any

from kasatune.io.library_noise import hush_imports


def begin(counter: Any, parent: int) -> None:
    """Make a new process ready for runs; importing this module imports none of the libraries that would speak then."""
    hush_imports()
    from kasatune.experiments.compare.executors import begin_worker

    begin_worker(counter, parent)

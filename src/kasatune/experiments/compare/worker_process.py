"""Start of a worker process of a comparison: library noise, signals, its GPU, and exit when the parent is gone.

A spawned process imports this module before anything else, so the module itself imports neither torch nor
transformers: their start-up messages would be printed before `hush_imports` is called.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from kasatune.io.library_noise import hush_imports


def start_worker(counter: Any, parent: int) -> None:
    """Prepare a new process for runs.

    Ctrl-C is ignored, since the parent handles it. Each worker takes the next visible GPU. A worker exits within a
    second once its parent is gone.

    Args:
        counter: shared `multiprocessing.Value` that numbers the workers.
        parent: process ID of the parent.
    """
    hush_imports()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))  # replaces the handler that a run would install
    with counter.get_lock():
        number, counter.value = counter.value, counter.value + 1
    import torch

    visible = torch.cuda.device_count()
    if visible > 1:
        names = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(visible)))).split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = names[number % len(names)]

    def exit_without_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=exit_without_parent, daemon=True).start()

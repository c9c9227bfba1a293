"""Time that training waits for batches: kasatune's KaSA, and PEFT's LoRA with a plain Trainer, on the demo's rows.

python -m benchmarks.data_loading [--quick]
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from transformers import Trainer

from benchmarks import plain_trainer
from benchmarks.harness import Row, arguments, duration, publish
from benchmarks.whole_run import LORA, demo, processes
from kasatune.data.tasks import load_task
from kasatune.recipes.schema import Recipe
from kasatune.training.train import train


@contextmanager
def timed_batches() -> Iterator[tuple[list[float], list[float]]]:
    """Collect the seconds that each optimizer step waited for its rows, and when it asked for them."""
    waited: list[float] = []
    asked: list[float] = []
    original = Trainer.get_batch_samples

    def timed(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        batches = original(self, *args, **kwargs)
        if batches[0]:
            asked.append(start)
            waited.append(time.perf_counter() - start)
        return batches

    with mock.patch.object(Trainer, "get_batch_samples", timed):
        yield waited, asked


def measure(run: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of waiting for a batch, and of a step with its batch."""
    with timed_batches() as (waited, asked):
        run()
    return statistics.median(waited), statistics.median(b - a for a, b in itertools.pairwise(asked))


def plain(command: list[str]) -> None:
    with mock.patch.object(sys, "argv", command[1:]):
        plain_trainer.main()


def main() -> None:
    quick = arguments(__doc__ or "").quick
    number = 640 if quick else 1800
    with tempfile.TemporaryDirectory() as folder:
        recipe = demo(Path(folder), number)
        training = recipe.training.model_dump() | {"epochs": 1}
        recipe = Recipe.model_validate(recipe.model_dump() | {"training": training})
        command = processes(recipe, load_task(recipe.task), Path(folder))[LORA](Path(folder) / "plain")
        peer, _ = measure(lambda: plain(command))
        ours, step = measure(lambda: train(recipe, Path(folder) / "ours"))
    rows = [
        Row("a batch of 32 rows / the step that waits for it", duration(ours), duration(step), ours / step, 0.01),
        Row(f"a batch of 32 rows / {LORA} with a plain Trainer", duration(ours), duration(peer), ours / peer, 1.0),
    ]
    publish(
        "data_loading",
        "How long training waits for data",
        "python -m benchmarks.data_loading",
        rows,
        f"The demo's recipe, one epoch of {number:,} rows, MiniLM. Batches are made in the training process, from "
        "tokens that are kept in memory; a step that takes less time than the first figure would wait for them.",
        quick=quick,
        meaning="Medians over the steps of one epoch; lower is better, and the target is the upper bound of the ratio.",
    )


if __name__ == "__main__":
    main()

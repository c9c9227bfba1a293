"""The losses of a language model before the first step: the untouched base, and the model with the method attached.

A method that changes the base when it is attached, as KaSA does by dropping a component of each weight, may start far
from the base; a run measures this and warns of it.
"""

from __future__ import annotations

import json
import time
from typing import Any

from kasatune.distributed.fsdp import deepspeed_requested, sharding_requested
from kasatune.distributed.process_group import is_main
from kasatune.io.atomic import write_json
from kasatune.io.run_layout import START
from kasatune.methods.info import MethodInfo
from kasatune.training.run import SPLIT, Run
from kasatune.training.text_losses import measure_start

RISE = 0.1
"""Nats by which a loss may rise before the first step without a warning."""
_LOSSES = {"loss": "loss", "unrelated_loss": "on unrelated text"}


def record_start(run: Run, *, resume: bool) -> None:
    """Measure the losses before the first step, once in a run, for metrics.json."""
    if sharding_requested() or deepspeed_requested() or not is_main():
        return
    path = run.work / START
    if resume and path.is_file():
        run.details["start"] = json.loads(path.read_text(encoding="utf-8"))
        return
    begin = time.perf_counter()
    measured = measure_start(run.task_model, run.examples[SPLIT])
    if measured is None:
        return
    run.details["start"] = measured
    run.seconds["start"] = time.perf_counter() - begin
    write_json(path, measured)
    lines = messages(measured, run.task_model.method.info)
    for message in (
        lines[:1] if run.recipe.model.adapter is not None else lines
    ):  # trained already, no fault of attaching
        run.display.message(message)


def messages(measured: dict[str, Any], method: MethodInfo) -> list[str]:
    """One line with the losses, and a warning if one of them rose by more than `RISE`."""
    base, start = measured["base"], measured["start"]
    shown = [
        f"{what} {start[key]:.3f}" + ("" if base is None else f" (base {base[key]:.3f})")
        for key, what in _LOSSES.items()
    ]
    lines = [f"before the first step: {', '.join(shown)}"]
    rises = {} if base is None else {key: start[key] - base[key] for key in _LOSSES}
    if rises and max(rises.values()) > RISE:
        lines.append(
            f"warning: attaching {method.name} changed the loss by {rises['loss']:+.2f} nats on the task and by "
            f"{rises['unrelated_loss']:+.2f} on unrelated text before the first step{_remedy(method)}"
        )
    return lines


def _remedy(method: MethodInfo) -> str:
    if not method.drops_triplets:
        return f": {method.start}" if method.start else ""
    return (
        ": what it dropped is used by this model's activations. Use method.name: akasa, method.truncate_by: activation "
        "or method.drop: 0; `kasatune inspect MODEL --truncation` shows the losses by kind of layer"
    )

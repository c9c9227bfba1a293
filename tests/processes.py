"""What each of several processes does in test_processes.py; kept apart, because the processes import it."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kasatune.distributed import fsdp
from kasatune.kasa import KasaLayer
from kasatune.kasa.truncation import compute_tails
from kasatune.recipes.schema import load_recipe
from kasatune.training import train as runs
from kasatune.training.engines import run_trainer
from kasatune.training.engines.trainer import MeanLossTrainer
from tests.toys import At

_CONTEXT = multiprocessing.get_context("forkserver")
# What every process would import by itself; one that is not installed is passed over.
_CONTEXT.set_forkserver_preload([__name__, "deepspeed", "sklearn.metrics", "transformers.models.bert.modeling_bert"])
os.environ.setdefault("DS_ACCELERATOR", "cpu")


def together(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Do `work(*arguments)` in processes as torchrun starts them; the first that fails ends all."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    started = [
        _CONTEXT.Process(target=_one, args=(rank, count, port, work, arguments), daemon=True) for rank in range(count)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    assert codes == [0] * count


def train(recipe: str, out: str, **options: Any) -> None:
    """One run, which must not be stopped."""
    runs.train(load_recipe(recipe), Path(out), **options)


def train_sharded(recipe: str, out: str, **options: Any) -> None:
    """The same with every parameter sharded, as `accelerate launch --use_fsdp --fsdp_version 2` asks for it."""
    with _Sharded():
        train(recipe, out, **options)


def train_mixture_sharded(recipe: str, out: str) -> None:
    """A run of a mixture with every parameter sharded; its small parameters need not have a row in each process."""
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    train(recipe, out)


def train_dealt_out(recipe: str, out: str, **options: Any) -> None:
    """The same by ZeRO-3, as `accelerate launch --use_deepspeed --zero_stage 3` asks for it."""
    with _DealtOut():
        train(recipe, out, **options)


def stop_dealt_out(recipe: str, out: str, step: int) -> None:
    """A run by ZeRO-3 that is stopped after a step."""
    with _DealtOut():
        stop(recipe, out, step)


def diverge_dealt_out(recipe: str, out: str) -> None:
    """A run by ZeRO-3 that diverges in one process."""
    with _DealtOut():
        diverge(recipe, out)


def stop_sharded(recipe: str, out: str, step: int) -> None:
    """A sharded run that is stopped after a step."""
    with _Sharded():
        stop(recipe, out, step)


def stop(recipe: str, out: str, step: int) -> None:
    """A run that one process is asked to stop, as a queue does it."""
    try:
        train(recipe, out, display=At(step, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    except KeyboardInterrupt:
        return
    raise AssertionError("the run was not stopped")


def diverge(recipe: str, out: str) -> None:
    """A run whose second step, of two pieces like the first, is not finite in the last process alone."""
    whole, calls = MeanLossTrainer.compute_loss, []

    def broken(self: Any, *arguments: Any, **options: Any) -> Any:
        loss = whole(self, *arguments, **options)
        calls.append(0)
        return loss * float("nan") if self.args.process_index and len(calls) == 3 else loss

    MeanLossTrainer.compute_loss = broken  # type: ignore[method-assign]
    try:
        train(recipe, out)
    except runs.DivergedError as fault:
        assert "step 2" in str(fault), fault
        return
    finally:
        MeanLossTrainer.compute_loss = whole  # type: ignore[method-assign]
    raise AssertionError("the run did not diverge")


class _Sharded:
    """The environment of a sharded run; every layer's parameters must be sharded in it."""

    def __enter__(self) -> None:
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        self._shard = fsdp.shard_model

        def checked(model: Any, *rest: Any) -> None:
            self._shard(model, *rest)
            layers = [module for module in model.modules() if isinstance(module, KasaLayer)]
            held = [p for layer in layers for p in layer.parameters()]
            assert held, "no layer is adapted"
            assert all(isinstance(p, torch.distributed.tensor.DTensor) for p in held)
            if os.environ["WORLD_SIZE"] == "2":  # a factor of rank 2 has no row for each of four
                mine = sum(p.to_local().numel() for p in held)  # type: ignore[attr-defined]
                assert 2 * mine == sum(p.numel() for p in held)

        runs.shard_model = checked  # type: ignore[attr-defined]

    def __exit__(self, *_: object) -> None:
        del os.environ["ACCELERATE_USE_FSDP"]
        runs.shard_model = self._shard  # type: ignore[attr-defined]


class _DealtOut:
    """The environment of a run by ZeRO-3; every parameter must be dealt out in it."""

    def __enter__(self) -> None:
        os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
        self._partition = run_trainer.partition

        def checked(model: Any, arguments: Any) -> None:
            numbers = sum(p.numel() for p in model.parameters())
            self._partition(model, arguments)
            held = list(model.parameters())
            assert not sum(p.numel() for p in held), "a parameter is whole"
            assert sum(p.ds_numel for p in held) == numbers
            mine = sum(p.ds_tensor.numel() for p in held)
            assert mine <= numbers / int(os.environ["WORLD_SIZE"]) + len(held)

        run_trainer.partition = checked

    def __exit__(self, *_: object) -> None:
        del os.environ["ACCELERATE_USE_DEEPSPEED"], os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"]
        run_trainer.partition = self._partition


def count_decompositions(recipe: str, out: str, counts: str) -> None:
    """A run, and how many weights this process decomposed for it."""
    before, number = compute_tails.tail_svd_many, [0]

    def counted(weights: Any, *rest: Any, **options: Any) -> Any:
        number[0] += len(weights)
        return before(weights, *rest, **options)

    compute_tails.tail_svd_many = counted
    try:
        train(recipe, out)
    finally:
        compute_tails.tail_svd_many = before
    Path(counts, os.environ["RANK"]).write_text(json.dumps(number[0]), encoding="utf-8")


def _one(rank: int, count: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    gc.freeze()  # what was imported before the fork is nothing that collecting garbage should go through
    work(*arguments)

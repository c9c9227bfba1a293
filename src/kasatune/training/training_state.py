"""Optimizer, schedule, loss scale and random state of a run under way, in safetensors and JSON, and never sharded."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from kasatune.distributed import zero3
from kasatune.distributed.gather_scatter import gather_full, shard_like
from kasatune.io.atomic import write_json

OPTIMIZER = "optimizer.safetensors"
SCHEDULE = "schedule.json"
SCALER = "scaler.json"
_RANDOM = "random-{}.safetensors"
_STEP = "step"
# What wraps a module on the way adds to the names of its parameters.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.", "module.")


def plain_name(name: str) -> str:
    """The name of a parameter without what a wrapper of its module adds."""
    for wrapper in _WRAPPERS:
        name = name.replace(f".{wrapper}", ".").removeprefix(wrapper)
    return name


def save_optimizer(folder: Path, model: nn.Module, optimizer: Optimizer, scheduler: Any, *, writes: bool) -> None:
    """Write the state of an optimizer and its schedule, by names of parameters.

    Every process of a distributed run must call it; the one that `writes` does.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for key, gathered in _state_of(optimizer, parameter):
            if writes:
                tensors[f"{plain_name(name)}/{key}"] = gathered.detach().cpu().contiguous()
    if writes:
        groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        save_file(tensors, folder / OPTIMIZER)
        write_json(folder / SCHEDULE, {"groups": groups, "schedule": scheduler.state_dict()})


def _state_of(optimizer: Optimizer, parameter: nn.Parameter) -> Iterable[tuple[str, Tensor]]:
    """The optimizer's state of one parameter, whole; none of what is not trained."""
    if zero3.is_partitioned(parameter):
        return zero3.optimizer_state(parameter).items() if parameter.requires_grad else ()
    return ((key, gather_full(torch.as_tensor(value))) for key, value in optimizer.state.get(parameter, {}).items())


def load_optimizer(folder: Path, model: nn.Module, optimizer: Optimizer, scheduler: Any) -> None:
    """Take back what `save_optimizer` wrote, however many processes wrote it."""
    record = json.loads((folder / SCHEDULE).read_text(encoding="utf-8"))
    for group, saved in zip(optimizer.param_groups, record["groups"], strict=True):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()})
    scheduler.load_state_dict(record["schedule"])
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    with safe_open(folder / OPTIMIZER, framework="pt") as file:
        for entry in file.keys():  # noqa: SIM118 - it is no dictionary
            name, _, key = entry.rpartition("/")
            parameter, value = parameters[name], file.get_tensor(entry)
            if zero3.is_partitioned(parameter):
                zero3.load_optimizer_state(parameter, key, value)
            else:
                optimizer.state[parameter][key] = value if key == _STEP else shard_like(value, parameter)


def save_scaler(folder: Path, scaler: Any) -> None:
    """Write the state of a gradient scaler, where there is one."""
    if scaler is not None:
        write_json(folder / SCALER, scaler.state_dict())


def load_scaler(folder: Path, scaler: Any) -> None:
    """Take back what `save_scaler` wrote."""
    if scaler is not None and (folder / SCALER).is_file():
        scaler.load_state_dict(json.loads((folder / SCALER).read_text(encoding="utf-8")))


def save_random(folder: Path, process: int) -> None:
    """Write the states of the random generators of Python, NumPy and torch, of one process."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    tensors = {
        "python": torch.tensor(internal, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    rest = {"python": [version, gauss], "numpy": [kind, int(position), int(has_gauss), float(cached)]}
    save_file(tensors, folder / _RANDOM.format(process), metadata={"rest": json.dumps(rest)})


def load_random(folder: Path, process: int) -> None:
    """Take back what `save_random` wrote; a process that there was none of before keeps its own."""
    path = folder / _RANDOM.format(process)
    if not path.is_file():
        return
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        rest = json.loads(file.metadata()["rest"])
    version, gauss = rest["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    kind, position, has_gauss, cached = rest["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


@contextmanager
def random_kept() -> Iterator[None]:
    """Within it nothing draws from the generators that training goes on with, not even a library's first import."""
    python, numpy, cpu = random.getstate(), np.random.get_state(legacy=True), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


def saved_processes(folder: Path) -> int:
    """How many processes wrote a checkpoint."""
    return len(list(folder.glob(_RANDOM.format("*"))))

"""Contents of a checkpoint: trained weights, optimizer, schedule, loss scale and RNG state, in safetensors and JSON.

Tensors are stored unsharded, by parameter name, so that a run can be resumed with another number of processes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Generator, Iterable
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
from kasatune.distributed.gather_scatter import gather_full, scatter_, shard_like
from kasatune.io.atomic import atomic_write, write_json
from kasatune.methods.shared.trained_parameters import trainable

WEIGHTS = "model.safetensors"
METHOD_STATE = "method.safetensors"
OPTIMIZER = "optimizer.safetensors"
SCHEDULE = "schedule.json"
SCALER = "scaler.json"
PROGRESS = "progress.json"
_RANDOM = "random-{}.safetensors"
_STEP = "step"
# Prefixes that wrappers of a module (activation checkpointing, torch.compile, DDP) add to parameter names.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.", "module.")


def plain_name(name: str) -> str:
    """The name of a parameter without the prefixes of wrapper modules."""
    for wrapper in _WRAPPERS:
        name = name.replace(f".{wrapper}", ".").removeprefix(wrapper)
    return name


def save_trained_parameters(model: nn.Module, path: Path, *, writes: bool = True) -> None:
    """Write the trained parameters of `model`, unsharded, atomically.

    Collective: every process of a distributed run must call it; the process with `writes` writes.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in trainable(model).items():
        gathered = gather_full(parameter).detach()
        if writes:
            tensors[plain_name(name)] = gathered.cpu().contiguous()
    if writes:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})


def load_trained_parameters(model: nn.Module, path: Path) -> None:
    """Copy the parameters that `save_trained_parameters` wrote into `model`, which may be sharded."""
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            scatter_(file.get_tensor(name), parameters[name])


def save_optimizer(folder: Path, model: nn.Module, optimizer: Optimizer, scheduler: Any, *, writes: bool) -> None:
    """Write the state of an optimizer, by parameter name, and of its learning-rate schedule.

    Collective: every process of a distributed run must call it; the process with `writes` writes.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for key, gathered in _optimizer_state(optimizer, parameter):
            if writes:
                tensors[f"{plain_name(name)}/{key}"] = gathered.detach().cpu().contiguous()
    if writes:
        groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        save_file(tensors, folder / OPTIMIZER)
        write_json(folder / SCHEDULE, {"groups": groups, "schedule": scheduler.state_dict()})


def _optimizer_state(optimizer: Optimizer, parameter: nn.Parameter) -> Iterable[tuple[str, Tensor]]:
    """The unsharded optimizer state of one parameter; empty for a frozen one."""
    if zero3.is_partitioned(parameter):
        return zero3.optimizer_state(parameter).items() if parameter.requires_grad else ()
    return ((key, gather_full(torch.as_tensor(value))) for key, value in optimizer.state.get(parameter, {}).items())


def load_optimizer(folder: Path, model: nn.Module, optimizer: Optimizer, scheduler: Any) -> None:
    """Restore what `save_optimizer` wrote, for any number of processes that wrote it."""
    record = json.loads((folder / SCHEDULE).read_text(encoding="utf-8"))
    for group, saved in zip(optimizer.param_groups, record["groups"], strict=True):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()})
    scheduler.load_state_dict(record["schedule"])
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    with safe_open(folder / OPTIMIZER, framework="pt") as file:
        for entry in file.keys():  # noqa: SIM118 - not a dictionary
            name, _, key = entry.rpartition("/")
            parameter, value = parameters[name], file.get_tensor(entry)
            if zero3.is_partitioned(parameter):
                zero3.load_optimizer_state(parameter, key, value)
            else:
                optimizer.state[parameter][key] = value if key == _STEP else shard_like(value, parameter)


def save_scaler(folder: Path, scaler: Any) -> None:
    """Write the state of a gradient scaler; nothing if `scaler` is None."""
    if scaler is not None:
        write_json(folder / SCALER, scaler.state_dict())


def load_scaler(folder: Path, scaler: Any) -> None:
    """Restore what `save_scaler` wrote; nothing if `scaler` is None or no state was written."""
    if scaler is not None and (folder / SCALER).is_file():
        scaler.load_state_dict(json.loads((folder / SCALER).read_text(encoding="utf-8")))


def save_random_state(folder: Path, process: int) -> None:
    """Write the states of this process's random generators: Python's, NumPy's, torch's and CUDA's."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = _numpy_state()
    tensors = {
        "python": torch.tensor(internal, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    rest = {"python": [version, gauss], "numpy": [kind, int(position), int(has_gauss), float(cached)]}
    save_file(tensors, folder / _RANDOM.format(process), metadata={"rest": json.dumps(rest)})


def load_random_state(folder: Path, process: int) -> None:
    """Restore what `save_random_state` wrote; nothing for a process that did not exist when it was written."""
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
def preserved_random_state() -> Generator[None]:
    """Restore the generators of Python, NumPy and torch (CPU) on exit, so that code inside does not advance them.

    Even the first import of a library may draw random numbers.
    """
    python, numpy, cpu = random.getstate(), _numpy_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


def process_count(folder: Path) -> int:
    """The number of processes that wrote a checkpoint."""
    return len(list(folder.glob(_RANDOM.format("*"))))


def _numpy_state() -> Any:
    return np.random.get_state(legacy=True)

"""Decompose a checkpoint ahead of training: write the tails of all its weights, by magnitude one weight at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from kasatune.adapter_tools.decompose_by_activation import decompose_by_activation
from kasatune.adapter_tools.decompose_job import (
    UNFINISHED,
    Job,
    begin,
    check_output,
    clear_abandoned,
    locate,
    withdraw,
)
from kasatune.adapter_tools.decompose_processes import Process, gathered, processes, wait
from kasatune.adapter_tools.resolve import build_errors
from kasatune.errors import InputError, ModelError, WorkError
from kasatune.io.atomic import write_json
from kasatune.io.library_noise import quiet
from kasatune.io.model_location import ModelLocation
from kasatune.io.progress import NullProgress, ProgressReporter
from kasatune.kasa.targets import targets_of_base
from kasatune.kasa.truncation.tail_store import ALGORITHM, FORMAT, INDEX, TAILS, TailKey, read_tail, write_tail
from kasatune.linalg import tail_svd
from kasatune.models.gguf import fast_reading, weight_options
from kasatune.weights.safetensors_reader import Checkpoint, ModelCheckpoint, StoredTensor
from kasatune.wording import counted

__all__ = ["Job", "check_output", "decompose"]


@dataclass(frozen=True)
class Layer:
    """A weight to decompose.

    Attributes:
        name: name of the layer in the model without a head.
        stored: its weight in a safetensors file.
        transposed: whether it is stored (in, out).
        shape: (out, in).
        dropped: number of singular triplets to drop.
    """

    name: str
    stored: StoredTensor
    transposed: bool
    shape: tuple[int, int]
    dropped: int

    @property
    def cost(self) -> int:
        """Multiplications in one product W W^T."""
        return min(self.shape) ** 2 * max(self.shape)


def decompose(
    job: Job,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    display: ProgressReporter | None = None,
) -> dict[str, Any]:
    """Write the r smallest singular triplets of every target weight of a checkpoint, and an index of them.

    The model is never built with weights: names and types of its layers come from its configuration, and each weight is
    read from its safetensors file just before it is decomposed. The weights of a GGUF file are all dequantized first.
    Every tail is a separate file that is written atomically, so that a killed command can be resumed and several
    processes can work in one directory. The layers are distributed by cost over processes started by torchrun.

    By activation the model is built and reads text, in one process (adapter_tools/decompose_by_activation.py).

    Args:
        job: what to decompose.
        out: the output directory; must be empty or not exist yet, unless `resume` or `overwrite` is given.
        device: "auto" or a torch device.
        resume: continue an earlier decomposition with an equal job; its tails are verified.
        overwrite: replace an earlier decomposition.
        display: receives the progress; None for no output.

    Returns:
        The index, complete in the first process; in the others, only the layers that they wrote.

    Raises:
        InputError: the model, targets, rank or output is invalid; nothing has been written in this case.
        WorkError: a file could not be written.
    """
    started, began = time.perf_counter(), time.time()
    where = _device(device)
    check_output(out, job, resume=resume, overwrite=overwrite)
    job.config()  # refuses settings that contradict each other
    if job.truncate_by == "activation":
        return decompose_by_activation(job, out, where, resume=resume, display=display or NullProgress())
    with quiet(), processes() as process:
        shown: ProgressReporter = display if display is not None and process.rank == 0 else NullProgress()
        layers = _layers(job, shown)
        try:
            if process.rank == 0:
                begin(out, job, keep=resume)
            wait(process)
            written = _decompose(_share(layers, process), out / TAILS, job, where, shown)
            entries = gathered(written, process)
            seconds = round(time.perf_counter() - started, 3)
            index = {
                "format": FORMAT,
                "algorithm": ALGORITHM,
                **job.as_dict(),
                "seconds": seconds,
                "layers": entries,
            }
            if process.rank == 0:
                index["layers"] = {layer.name: index["layers"][layer.name] for layer in layers}
                write_json(out / INDEX, index)
                (out / UNFINISHED).unlink(missing_ok=True)
                clear_abandoned(out / TAILS, began)
        except InputError:
            if process.rank == 0 and not resume:
                withdraw(out)
            raise
        except OSError as fault:
            raise WorkError(
                f"{out}: {fault.strerror or fault}; free some space, then continue with --resume"
            ) from fault
        finally:
            shown.finish()
    return index


def _layers(job: Job, display: ProgressReporter) -> list[Layer]:
    """The weights to decompose, in the order in which they are stored.

    Raises:
        ModelError: the model cannot be found, a target does not exist, or a weight is not stored in a floating dtype.
    """
    config, location = job.config(), locate(job)
    folder = Path(location.path)
    model = _skeleton(folder) if location.gguf_file is None else _dequantized(location)
    targets = targets_of_base(config, model)
    files = Checkpoint.open(folder) if location.gguf_file is None else Checkpoint.of_model(folder, model)
    checkpoint = ModelCheckpoint(files, model)
    layers, missing = [], []
    for name, _, weight, settings in targets:
        stored = checkpoint.weight(name)
        if stored is None:
            missing.append(name)
            continue
        layer = Layer(name, stored, checkpoint.is_transposed(name), weight.shape, settings.drop)
        layers.append(_checked(layer, folder))
    if missing and not layers:
        raise ModelError(
            f"{folder} contains no weight of {missing[0]}: its files belong to another model; copy it again"
        )
    if missing:
        display.message(f"skipped, because the files contain no weight for them: {', '.join(missing)}")
    order = {key: position for position, key in enumerate(checkpoint.names)}
    return sorted(layers, key=lambda layer: order[layer.stored.key])


def _checked(layer: Layer, folder: Path) -> Layer:
    stored, (rows, columns) = layer.stored, layer.shape
    if not stored.is_float:
        raise ModelError(
            f"{stored.path.name}: {stored.key} is stored as {stored.dtype}; tails are computed from full-precision "
            "weights: give the checkpoint that was quantized"
        )
    if stored.shape != ((columns, rows) if layer.transposed else (rows, columns)):
        raise ModelError(
            f"{stored.path.name}: {stored.key} has shape {list(stored.shape)}, and the configuration in {folder} "
            f"gives the layer {counted(rows, 'output')} and {counted(columns, 'input')}; copy the model again"
        )
    return layer


def _skeleton(folder: Path) -> PreTrainedModel:
    """The model without head, on the meta device."""
    with build_errors(folder), quiet(), torch.device("meta"):
        return AutoModel.from_config(AutoConfig.from_pretrained(folder))


def _dequantized(location: ModelLocation) -> nn.Module:
    """The model of a GGUF file without head, its weights in float32 or, if no weight is quantized, as they are."""
    with build_errors(location.file), quiet(), fast_reading(location):
        options = weight_options(location)
        return AutoModelForCausalLM.from_pretrained(location.path, dtype="auto", **options).base_model


def _share(layers: Sequence[Layer], process: Process) -> list[Layer]:
    """The layers of one process: each layer, the costliest first, is assigned to the process with the least work."""
    loads = [0] * process.count
    mine = set()
    for layer in sorted(layers, key=lambda layer: (-layer.cost, layer.name)):
        least = loads.index(min(loads))
        loads[least] += layer.cost
        if least == process.rank:
            mine.add(layer.name)
    return [layer for layer in layers if layer.name in mine]


def _decompose(
    layers: Sequence[Layer], folder: Path, job: Job, device: torch.device, display: ProgressReporter
) -> dict[str, dict[str, Any]]:
    """Write the tails that do not exist yet; returns the index entry of each layer."""
    written = {}
    display.progress("decomposing", 0, len(layers))
    for done, layer in enumerate(layers, start=1):
        W = layer.stored.read()
        if job.dtype is not None:
            W = W.to(getattr(torch, job.dtype))
        key = TailKey.of(W.T if layer.transposed else W, layer.dropped)
        if layer.dropped and not _has_valid_tail(folder, key, layer.name, display):
            W = W.to(device)
            write_tail(folder, key, tail_svd(W.T if layer.transposed else W, layer.dropped, name=layer.name))
        del W  # before the next is read
        written[layer.name] = {"weight": key.digest, "shape": list(layer.shape), "dropped": layer.dropped}
        if layer.dropped:
            written[layer.name]["file"] = f"{TAILS}/{key.filename}"
        display.progress("decomposing", done, len(layers))
    return written


def _has_valid_tail(folder: Path, key: TailKey, name: str, display: ProgressReporter) -> bool:
    try:
        return read_tail(folder / key.filename, key) is not None
    except ModelError as fault:
        display.message(f"the tail of {name} is computed again: {fault}")
        return False


def _device(name: str) -> torch.device:
    """The torch device that `--device` names.

    Raises:
        InputError: this machine does not have the device.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto" and accelerator is None:
        return torch.device("cpu")
    if name == "auto" and accelerator is not None:
        return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count())
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (device.type != "cpu" and (accelerator is None or device.type != accelerator.type)):
        raise InputError(f"--device {name} is not available on this machine; use auto or cpu")
    return device

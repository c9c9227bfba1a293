"""Decompose a checkpoint by activation: run the model on text, and write what its activations use least of each weight.

The tails depend on activations, so the model must run, unlike in a decomposition by magnitude. A model that does not
fit in memory is run with its weights on disk, one layer at a time, by accelerate. Second moments are measured for as
many layers at a time as a quarter of the memory holds, 16 k^2 bytes each for k = min(out, in); every such group costs
one pass over the text.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from kasatune.adapter_tools.decompose_job import UNFINISHED, Job, begin, earlier, locate, withdraw
from kasatune.adapter_tools.resolve import build_errors
from kasatune.data.calibration_text import bundled_batches
from kasatune.distributed.process_group import world_size
from kasatune.errors import InputError, ModelError, WorkError
from kasatune.io.atomic import write_json
from kasatune.io.library_noise import quiet
from kasatune.io.model_location import ModelLocation
from kasatune.io.progress import ProgressReporter
from kasatune.kasa.config import KasaConfig
from kasatune.kasa.targets import Target, targets_of_base
from kasatune.kasa.truncation.measure_activations import measure
from kasatune.kasa.truncation.self_written_text import calibration_length, generate_text
from kasatune.kasa.truncation.tail_store import (
    ALGORITHM,
    FORMAT,
    INDEX,
    TAILS,
    TailKey,
    read_tail,
    write_tail,
)
from kasatune.linalg.activation_tail import activation_tail
from kasatune.models.gguf import fast_reading, weight_options

SEED = 0
_ROWS_AT_ONCE = 4
_SHARE = 4  # moments take up to one part in so many of the memory that is free
_WEIGHTS_SHARE = 0.7  # of the free memory that weights may take before they are left on disk
_UNKNOWN_MEMORY = 8 * 2**30
_CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class Written:
    """What a decomposition has written so far.

    Attributes:
        layers: index entries by layer name.
        calibration: source, tokens and seed of the text.
    """

    layers: dict[str, dict[str, Any]]
    calibration: dict[str, Any]


def decompose_by_activation(
    job: Job, out: Path, device: torch.device, *, resume: bool, display: ProgressReporter
) -> dict[str, Any]:
    """Write the tails of a job with truncate_by="activation", and their index; see `decompose`.

    Raises:
        InputError: several processes were started, or the model, targets or rank is invalid.
        WorkError: a file could not be written.
    """
    started = time.perf_counter()
    if world_size() > 1:
        raise InputError(
            f"--truncate-by activation works in one process, and torchrun started {world_size()}: the model reads its "
            "text once for all layers; start it without torchrun"
        )
    before = _progress(out) if resume else {}
    location = locate(job)

    def save(written: Written) -> None:
        write_json(out / UNFINISHED, {**job.as_dict(), "progress": asdict(written)})

    try:
        begin(out, job, keep=resume)
        written = _write_tails(
            location,
            job.config(),
            out,
            dtype=job.dtype,
            device=device,
            before=before,
            save=save,
            display=display,
        )
        index = {
            "format": FORMAT,
            "algorithm": ALGORITHM,
            **job.as_dict(),
            "seconds": round(time.perf_counter() - started, 3),
            "calibration": written.calibration,
            "layers": written.layers,
        }
        write_json(out / INDEX, index)
        (out / UNFINISHED).unlink(missing_ok=True)
    except InputError:
        if not resume:
            withdraw(out)
        raise
    except OSError as fault:
        raise WorkError(f"{out}: {fault.strerror or fault}; free some space, then continue with --resume") from fault
    finally:
        display.finish()
    return index


def _progress(out: Path) -> dict[str, Any]:
    """The layers that an unfinished or finished decomposition by activation has written, and its text."""
    before = earlier(out) if out.is_dir() and any(out.iterdir()) else {}
    return before if "calibration" in before else before.get("progress", {})


def _write_tails(
    location: ModelLocation,
    config: KasaConfig,
    folder: Path,
    *,
    dtype: str | None,
    device: torch.device,
    before: Mapping[str, Any],
    save: Callable[[Written], None],
    display: ProgressReporter,
) -> Written:
    """Write the tails of all targets of a model.

    A causal language model reads text that it generates itself, 16 sequences of 96 tokens; an encoder, or a model whose
    weights stay on disk and which would read them once for each token, reads bundled text in one pass.

    Args:
        location: of the model.
        config: with target_modules and drop.
        folder: the output directory.
        dtype: in which the model will be loaded; None for that of the files.
        device: "cpu" or an accelerator.
        before: what an earlier, unfinished call gave to `save`, as plain data.
        save: called after every group of layers.
        display: receives the progress.

    Raises:
        ModelError: the model cannot be loaded or run, or a target cannot be decomposed.
    """
    with tempfile.TemporaryDirectory(prefix="kasatune-offload-") as offload:
        model, offloaded = _load(location, dtype, device, offload)
        targets = targets_of_base(copy.deepcopy(config), model)
        names = _without_head(targets, model)
        source, batches = _text(model, location, offloaded=offloaded)
        calibration = {"source": source, "tokens": 0, "seed": SEED if source == "generated" else None}
        if before.get("calibration"):
            calibration = dict(before["calibration"])
        written = Written(dict(before.get("layers") or {}), calibration)
        display.progress("decomposing", len(written.layers), len(targets))
        for group in _groups(targets):
            _write_group(model, group, names, batches, folder / TAILS, written)
            save(written)
            display.progress("decomposing", len(written.layers), len(targets))
    return Written({name: written.layers[name] for name in names.values()}, written.calibration)


def _write_group(
    model: Any,
    group: list[Target],
    names: Mapping[str, str],
    batches: list[dict[str, Tensor]],
    folder: Path,
    written: Written,
) -> None:
    """Measure and write the layers of one group that an earlier call has not written."""
    keys = {target.name: TailKey.of(target.weight.read(), target.settings.drop) for target in group}
    done = {
        target.name
        for target in group
        if written.layers.get(names[target.name], {}).get("weight") == keys[target.name].digest
        and _is_valid(folder, keys[target.name])
    }
    left = [target for target in group if target.name not in done]
    if not left:
        return
    activations = measure(model, {target.name: target.weight for target in left}, batches)
    written.calibration["tokens"] = activations.tokens
    for target in left:
        key, W = keys[target.name], target.weight.read()
        chosen = activation_tail(W, activations.moments.pop(target.name), target.settings.drop, name=target.name)
        write_tail(folder, key, chosen.tail)
        written.layers[names[target.name]] = {
            "weight": key.digest,
            "shape": list(target.weight.shape),
            "dropped": key.drop,
            "file": f"{TAILS}/{key.filename}",
            "cut": list(chosen.cut),
            "share": chosen.share,
        }


def _is_valid(folder: Path, key: TailKey) -> bool:
    try:
        return read_tail(folder / key.filename, key) is not None
    except ModelError:
        return False


def _without_head(targets: list[Target], model: Any) -> dict[str, str]:
    """The names of the layers in the model without a head, by their names in the model."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return {target.name: target.name.removeprefix(prefix) for target in targets}


def _groups(targets: list[Target]) -> Iterator[list[Target]]:
    """The targets in order, in groups whose moments take at most a part of the free memory."""
    limit = free_memory() / _SHARE
    group: list[Target] = []
    size = 0.0
    for target in targets:
        cost = 16.0 * min(target.weight.shape) ** 2  # the sum and one product
        if group and size + cost > limit:
            yield group
            group, size = [], 0.0
        group.append(target)
        size += cost
    if group:
        yield group


def _load(location: ModelLocation, dtype: str | None, device: torch.device, offload: str) -> tuple[Any, bool]:
    """The model in evaluation mode, and whether weights of it stay on disk."""
    options: dict[str, Any] = {"dtype": getattr(torch, dtype) if dtype else "auto"}
    place = location.file if location.gguf_file is not None else Path(location.path)
    with build_errors(place), quiet(), fast_reading(location):
        if location.gguf_file is not None:
            options |= weight_options(location)
            dequantized: Any = AutoModelForCausalLM.from_pretrained(location.path, **options)
            return dequantized.to(device).eval(), False
        size = sum(file.stat().st_size for file in place.glob("*.safetensors"))
        if device.type != "cpu":
            options |= {"device_map": "auto", "offload_folder": offload}
        elif size > _WEIGHTS_SHARE * free_memory():
            options |= {
                "device_map": "auto",
                "max_memory": {"cpu": int(free_memory() * _WEIGHTS_SHARE)},
                "offload_folder": offload,
            }
        kinds: list[str] = getattr(AutoConfig.from_pretrained(place), "architectures", None) or []
        kind = AutoModelForCausalLM if any(name.endswith(_CAUSAL) for name in kinds) else AutoModel
        model = kind.from_pretrained(place, **options).eval()
    places = set(map(str, getattr(model, "hf_device_map", {}).values()))
    return model, "disk" in places


def _text(model: Any, location: ModelLocation, *, offloaded: bool) -> tuple[str, list[dict[str, Tensor]]]:
    """The source of the text, and its batches."""
    if model.can_generate() and not offloaded:
        with quiet():
            return "generated", [{"input_ids": rows} for rows in generate_text(model, SEED).split(_ROWS_AT_ONCE)]
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(location.path)
            return "bundled", list(bundled_batches(tokenizer, calibration_length(model.config)))
    except (OSError, ValueError, ImportError) as fault:
        raise ModelError(
            f"{location.path}: the model reads bundled text, and its tokenizer cannot be loaded ({fault}): put the "
            f"tokenizer's files beside the weights{', or use more memory' if offloaded else ''}"
        ) from fault


def free_memory() -> float:
    """Bytes of memory that are free now; 8 GiB where the system does not tell."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return float(_UNKNOWN_MEMORY)

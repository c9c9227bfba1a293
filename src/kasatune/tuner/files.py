"""Adapters on disk: written in the format asked for, and recognised by content when read."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kasatune.errors import AdapterError, InputError, OutputError
from kasatune.tuner.config import scaling
from kasatune.tuner.layer import KasaLayer
from kasatune.tuner.lora_export import lora_config, stack, stored_layers
from kasatune.tuner.model import KasaModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FORMATS = ("lora", "kasa")


@dataclasses.dataclass(frozen=True)
class AdapterFiles:
    """An adapter as plain data: configuration and tensors by checkpoint key."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


def export_adapter(
    model_or_dir: nn.Module | str | os.PathLike[str], out_dir: str | os.PathLike[str], to: str = "lora"
) -> Path:
    """Write a KaSA adapter in another format.

    "lora": W' - W = [ -U_d S_d | s B diag(sigma) ] [ Vh_d ; A ], a stock PEFT LoRA of rank 2r and scaling 1 on the
    untouched base, for anything that serves LoRA. "kasa": the native form, which goes on training.

    Args:
        model_or_dir: a PeftModel with an active KaSA adapter, or the directory of a native adapter.
        out_dir: a directory that does not exist or is empty; it appears whole or not at all.
        to: the format.

    Returns:
        The directory written.

    Raises:
        InputError: an unknown format, or a model without a KaSA adapter.
        AdapterError: the source directory holds no whole KaSA adapter.
        OutputError: out_dir holds something.
    """
    if to not in FORMATS:
        raise InputError(f"to={to!r} is no adapter format here; choose one of {', '.join(FORMATS)}")
    source = _of_model(model_or_dir) if isinstance(model_or_dir, nn.Module) else read_native(model_or_dir)
    converted = _stacked(source) if to == "lora" else source
    with _whole_directory(Path(out_dir)) as directory:
        write(converted, directory)
    return Path(out_dir)


def load_adapter(
    base: nn.Module,
    directory: str | os.PathLike[str],
    *,
    adapter_name: str = "default",
    is_trainable: bool = False,
    check_base: bool = True,
) -> PeftModel:
    """Put an adapter on its base; the format is recognised by content.

    Args:
        base: the base model, not yet adapted.
        directory: of a native KaSA adapter or a stock LoRA adapter.
        adapter_name: what to call it.
        is_trainable: whether it goes on training.
        check_base: False loads it on a base that it was not made for, with a warning.

    Raises:
        AdapterError: no adapter there, a damaged one, or one of another base; the base model is left as it was.
    """
    files = read(directory)
    kind = format_of(files)
    options: dict[str, Any] = {"check_base": check_base} if kind == "kasa" else {}
    if kind == "kasa":
        stored_layers(files.tensors)
    return PeftModel.from_pretrained(
        base, str(directory), adapter_name=adapter_name, is_trainable=is_trainable, **options
    )


def read(directory: str | os.PathLike[str]) -> AdapterFiles:
    """Configuration and tensors of an adapter directory.

    Raises:
        AdapterError: a file that is missing or cannot be read; only safetensors are read, never pickles.
    """
    folder = Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            hint = "; adapters in pickle format are not read" if (folder / "adapter_model.bin").exists() else ""
            raise AdapterError(f"{folder}: no {name} there{hint}. Give the directory that save_pretrained wrote.")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{folder / CONFIG} is no JSON file: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise AdapterError(f"{folder / CONFIG} names no peft_type; it is no adapter configuration")
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, ValueError, OSError) as error:
        raise AdapterError(f"{folder / WEIGHTS} cannot be read: {error}. It was cut short or damaged.") from error
    return AdapterFiles(config, tensors)


def read_native(directory: str | os.PathLike[str]) -> AdapterFiles:
    """The same for a native KaSA adapter.

    Raises:
        AdapterError: it is of another kind.
    """
    files = read(directory)
    kind = format_of(files)
    if kind != "kasa":
        raise AdapterError(f"{directory} holds an adapter of the kind {kind!r}; a native KaSA adapter is needed here")
    return files


def format_of(files: AdapterFiles) -> str:
    """Which format an adapter has, by its configuration and tensor names.

    Raises:
        AdapterError: none that is read here.
    """
    peft_type = files.config["peft_type"]
    if peft_type == "KASA":
        return "kasa"
    if peft_type == "LORA":
        return "lora"
    raise AdapterError(f"peft_type {peft_type!r} is not read here; KaSA and LoRA adapters are")


def write(files: AdapterFiles, directory: Path) -> None:
    """Write configuration and tensors into an existing directory; equal content gives equal bytes."""
    tensors = {key: files.tensors[key].detach().cpu().contiguous() for key in sorted(files.tensors)}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(files.config, indent=2, sort_keys=True)
    (directory / CONFIG).write_text(text + "\n", encoding="utf-8")


def _of_model(model: nn.Module) -> AdapterFiles:
    tuner = getattr(model, "base_model", None)
    if not isinstance(model, PeftModel) or not isinstance(tuner, KasaModel):
        raise InputError(f"export needs a PeftModel with a KaSA adapter, got {type(model).__name__}")
    name = tuner.active_adapters[0]
    config = model.peft_config[name].to_dict()
    config["inference_mode"] = True
    if config.get("task_type") is None:
        base = model.get_base_model()
        config["auto_mapping"] = {
            "base_model_class": type(base).__name__,
            "parent_library": type(base).__module__,
        }
    config["base_model_name_or_path"] = config.get("base_model_name_or_path") or getattr(
        model.get_base_model(), "name_or_path", None
    )
    transposed = sorted(
        key for key, module in tuner.model.named_modules() if isinstance(module, KasaLayer) and module.fan_in_fan_out
    )
    config["fan_in_fan_out"] = bool(transposed) or config["fan_in_fan_out"]
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return AdapterFiles(json.loads(json.dumps(config)), {k: v.detach().clone() for k, v in tensors.items()})


def _stacked(source: AdapterFiles) -> AdapterFiles:
    config = source.config
    layers, tensors = stored_layers(source.tensors)
    ranks = {}
    for name, layer in layers.items():
        module = name.removeprefix("base_model.model.")
        lora = stack(layer, scaling_of(config, module))
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = lora
        ranks[module] = lora.A.shape[0]
    fan_in_fan_out = bool(config.get("fan_in_fan_out"))
    return AdapterFiles(lora_config(config, ranks, fan_in_fan_out=fan_in_fan_out), tensors)


def scaling_of(config: dict[str, Any], module: str) -> float:
    """S of one layer, from a native adapter's configuration."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    r = ranks.get(get_pattern_key(list(ranks), module), config["r"])
    alpha = alphas.get(get_pattern_key(list(alphas), module), config["lora_alpha"])
    return scaling(alpha, r, use_rslora=bool(config.get("use_rslora")))


@contextmanager
def _whole_directory(out: Path) -> Iterator[Path]:
    """A directory beside `out` that takes its name when everything in it is written, and else is removed.

    Raises:
        OutputError: `out` holds something, or cannot be made.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists and is not empty; name another directory or empty it first")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        if out.exists():
            out.rmdir()
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

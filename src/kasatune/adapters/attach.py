"""Adapter files put on a base model: checked against it before, and the model as it was where that fails."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from kasatune.adapters.formats import LayerShapes, split_key
from kasatune.adapters.native_format import weight_in
from kasatune.adapters.storage import PREFIX, AdapterFiles, Header, is_echo, listed, read_repeated, write
from kasatune.adapters.undo import unchanged_on_failure
from kasatune.errors import AdapterError, InputError, KasatuneError
from kasatune.weights.fingerprint import sketch_distance, sketch_tolerance
from kasatune.weights.quantized_weight import weight_of

# PEFT trains these modules of every classifier whole, whatever the configuration says.
_ALWAYS_SAVED = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score")}


def check_on_base(header: Header, layers: dict[str, LayerShapes], base: nn.Module, kind: str) -> None:
    """Hold what an adapter claims to contain against a base, before anything is read or changed.

    Raises:
        InputError: the base is adapted already.
        AdapterError: a layer that the base does not have or has in another shape; a head of another size; a tensor
            that would overwrite a weight of the base; a head that the adapter lacks.
    """
    if any(isinstance(module, BaseTunerLayer) for module in base.modules()):
        raise InputError("the base model holds an adapter already; use model.load_adapter(directory, name) of PEFT")
    for name, layer in layers.items():
        if kind != "lora" or all(len(shape) == 2 for shape in layer.parts.values()):
            weight_in(base, name, layer.shape)
    saved = _saved_modules(header.config, base)
    parameters = {name: tuple(parameter.shape) for name, parameter in base.named_parameters()}
    for key, shape in header.shapes.items():
        name = key.removeprefix(PREFIX)
        if split_key(key, kind) is not None or (kind == "lora" and ".lora_" in key):
            continue
        plain = name.replace(".base_layer.", ".")
        is_bias = plain.endswith(".bias") and (header.config.get("bias") or "none") != "none"
        if not is_bias and not _within(plain, saved):
            raise AdapterError(
                f"{header.folder}: the tensor {listed([key])} belongs to no adapted layer and to no module of "
                "modules_to_save: it would overwrite a weight of the base"
            )
        if parameters.get(plain, shape) != shape:
            raise AdapterError(
                f"{header.folder}: {plain} has shape {list(shape)}, in this base {list(parameters[plain])}: "
                "load the base with the number of labels and the vocabulary that the adapter was trained with"
            )
        if plain not in parameters and not _is_buffer(base, plain):
            raise AdapterError(f"{header.folder}: this base has no {listed([plain])}: it is another model")
    lacking = [
        n for n in parameters if _within(n, saved) and f"{PREFIX}{n}" not in header.shapes and not _adapted(n, layers)
    ]
    if lacking:
        raise AdapterError(f"{header.folder}: modules_to_save names {listed(lacking)}, which the adapter lacks")


def check_repeated(header: Header, base: nn.Module) -> None:
    """What an adapter repeats of its base must be what the base holds, since loading writes it there.

    Raises:
        AdapterError: it is something else.
    """
    for key, tensor in read_repeated(header).items():
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        own = dict(base.named_parameters(remove_duplicate=False)).get(name)
        if own is None or own.shape != tensor.shape or not torch.equal(tensor.to(own), own):
            raise AdapterError(f"{header.folder}: the tensor {listed([key])} would overwrite a weight of the base")


def check_fingerprint(fingerprint: Any, base: nn.Module, *, strict: bool) -> None:
    """Hold the weights of a base against sketches by layer name, as a native adapter and a certificate carry them.

    Raises:
        AdapterError: the sketches are damaged, or of other weights and `strict`; else a warning.
    """
    for name, found, limit in sketch_differences(fingerprint, base):
        if found is None or found > limit:
            message = f"this is another base model than the adapter was made for: {listed([name])} differs"
            if strict:
                raise AdapterError(f"{message}. Load the right base, or pass check_base=False to load it anyway.")
            warnings.warn(f"{message}; loaded anyway, because check_base=False", stacklevel=3)
            return


def sketch_differences(fingerprint: Any, base: nn.Module) -> Iterator[tuple[str, float | None, float]]:
    """Layer name, how far its weight is from its sketch (None for another shape), and how far it may be.

    Raises:
        AdapterError: the sketches are damaged.
    """
    for name, stored in fingerprint.items() if isinstance(fingerprint, dict) else ():
        try:
            weight = weight_of(base.get_submodule(name))
            found = sketch_distance(weight.read(), stored)
        except AttributeError:
            continue
        yield name, found, sketch_tolerance(weight.dtype, weight.bits, stored)


def place(base: nn.Module, directory: Path, written: set[str], **options: Any) -> PeftModel:
    """The base with the adapter in `directory`, through PEFT; as it was where that fails.

    Args:
        base: the base model.
        directory: of a native or a stock LoRA adapter.
        written: names of parameters of the base that the adapter overwrites.
        options: of `PeftModel.from_pretrained`.

    Raises:
        AdapterError: PEFT cannot load it, or loads less than it holds.
    """
    with unchanged_on_failure(base, written):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Found missing adapter keys")
                warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
                return PeftModel.from_pretrained(base, str(directory), **options)  # pyright: ignore[reportArgumentType]
        except KasatuneError:
            raise
        except Exception as fault:  # PEFT raises many unrelated types for a configuration that it cannot take
            reason = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
            raise AdapterError(f"{directory}: PEFT cannot load this adapter: {reason}") from fault


def place_lora(base: nn.Module, header: Header, written: set[str], **options: Any) -> PeftModel:
    """`place` for a stock LoRA adapter, of which every tensor must have found its layer and every layer its tensors."""
    with unchanged_on_failure(base, written):
        model = place(base, header.folder, written, **options)
        name = options.get("adapter_name", "default")
        state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        expected, found = {key for key in state if not is_echo(key)}, set(header.shapes)
        if expected != found:
            lacking, stray = sorted(expected - found), sorted(found - expected)
            what = f"lacks {listed(lacking)}" if lacking else f"holds {listed(stray)}, which belong to no layer"
            raise AdapterError(f"{header.folder}: the adapter {what}, as its configuration and this base have it")
    return model


def place_native(base: nn.Module, files: AdapterFiles, written: set[str], **options: Any) -> PeftModel:
    """`place` for a native adapter that lies in memory."""
    with tempfile.TemporaryDirectory(prefix="kasatune-") as folder:
        write(files, Path(folder))
        return place(base, Path(folder), written, **options)


def _saved_modules(config: dict[str, Any], base: nn.Module) -> list[str]:
    """Names of the modules of the base that PEFT trains whole; a name matches by its end, as in PEFT."""
    endings = [*(config.get("modules_to_save") or ()), *_ALWAYS_SAVED.get(str(config.get("task_type")), ())]
    return [name for name, _ in base.named_modules() if name and any(name.endswith(end) for end in endings)]


def _within(name: str, modules: list[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _adapted(name: str, layers: dict[str, LayerShapes]) -> bool:
    return name.rpartition(".")[0] in layers


def _is_buffer(base: nn.Module, name: str) -> bool:
    return any(found == name for found, _ in base.named_buffers())

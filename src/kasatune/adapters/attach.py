"""Attach adapter files to a base model: checked against the base first, and the model restored if loading fails."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from kasatune.adapters.adapter_files import AdapterFiles, Header, is_echo, listed, read_repeated, write
from kasatune.adapters.embedding_tensors import (
    TOKENS,
    base_name,
    check_token_rows,
    embedding_parameters,
    original_vocabulary,
)
from kasatune.adapters.native_format import weight_in
from kasatune.adapters.recognize_format import LayerShapes, split_key
from kasatune.errors import AdapterError, InputError, KasatuneError
from kasatune.kasa.config import KasaConfig
from kasatune.kasa.targets import targets_of_base
from kasatune.weights.fingerprint import sketch_distance, sketch_tolerance
from kasatune.weights.quantized_weight import weight_of

# PEFT trains all of these modules in every classifier, whatever the configuration says.
_ALWAYS_SAVED = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score")}


def check_on_base(header: Header, layers: dict[str, LayerShapes], base: nn.Module, kind: str) -> None:
    """Check the header of an adapter against a base, before tensors are read or the base is modified.

    Raises:
        InputError: the base has an adapter already.
        AdapterError: a layer that the base lacks or has in another shape; a head of another size; a tensor that would
            overwrite a weight of the base; a head that the adapter lacks.
    """
    if any(isinstance(module, BaseTunerLayer) for module in base.modules()):
        raise InputError("the base model has an adapter already; use model.load_adapter(directory, name) of PEFT")
    for name, layer in layers.items():
        if kind != "lora" or all(len(shape) == 2 for shape in layer.parts.values()):
            weight_in(base, name, layer.shape)
    saved = _saved_modules(header.config, base)
    named = dict(base.named_parameters(remove_duplicate=False))
    parameters = {name: tuple(parameter.shape) for name, parameter in named.items()}
    embeddings = embedding_parameters(base)
    for key, shape in header.shapes.items():
        if split_key(key, kind) is not None or (kind == "lora" and ".lora_" in key):
            continue
        if key.endswith(TOKENS):
            check_token_rows(header, key, base)
            continue
        plain = base_name(key)
        is_bias = plain.endswith(".bias") and (header.config.get("bias") or "none") != "none"
        kept_tied = plain in embeddings and any(_within(name, saved) for name in embeddings)
        resized = plain in embeddings and _is_resized(shape, base)
        if not (is_bias or _within(plain, saved) or kept_tied or resized):
            raise AdapterError(
                f"{header.folder}: the tensor {listed([key])} belongs to no adapted layer and to no module of "
                "modules_to_save: it would overwrite a weight of the base"
            )
        if parameters.get(plain, shape) != shape:
            raise AdapterError(
                f"{header.folder}: {plain} has shape {list(shape)}, in this base {list(parameters[plain])}: "
                + (
                    f"resize the vocabulary first, with base.resize_token_embeddings({shape[0]})"
                    if plain in embeddings
                    else "load the base with the number of labels that the adapter was trained with"
                )
            )
        if plain not in parameters and not _is_buffer(base, plain):
            raise AdapterError(f"{header.folder}: this base has no {listed([plain])}: it is another model")
    require_saved_modules(header, layers, base)


def _is_resized(shape: tuple[int, ...], base: nn.Module) -> bool:
    """Whether embeddings of this shape are those of a vocabulary that was resized after the base was loaded."""
    return shape[0] != original_vocabulary(base)


def require_saved_modules(header: Header, layers: Collection[str], base: nn.Module) -> None:
    """Check that an adapter holds every parameter of the modules that its configuration saves entirely.

    A parameter that is tied to one that the adapter holds need not be saved itself.

    Raises:
        AdapterError: it lacks some, by name.
    """
    saved = _saved_modules(header.config, base)
    named = dict(base.named_parameters(remove_duplicate=False))
    held = {id(named[name]) for name in map(base_name, header.shapes) if name in named}
    lacking = [n for n, p in named.items() if _within(n, saved) and id(p) not in held and not _adapted(n, layers)]
    if lacking:
        raise AdapterError(f"{header.folder}: modules_to_save names {listed(lacking)}, which the adapter lacks")


def check_repeated(header: Header, base: nn.Module) -> None:
    """Check that base weights which an adapter repeats equal those of the base, since loading overwrites them.

    The rows that were added to a resized vocabulary may differ.

    Raises:
        AdapterError: they differ.
    """
    parameters = dict(base.named_parameters(remove_duplicate=False))
    embeddings = embedding_parameters(base)
    for key, tensor in read_repeated(header).items():
        name = base_name(key)
        own = parameters.get(name)
        first = 0 if own is None else original_vocabulary(base) if name in embeddings else len(own)
        if own is None or own.shape != tensor.shape or not torch.equal(tensor[:first].to(own), own[:first]):
            raise AdapterError(f"{header.folder}: the tensor {listed([key])} would overwrite a weight of the base")


def check_fingerprint(fingerprint: Any, base: nn.Module, *, strict: bool) -> None:
    """Compare the weights of a base with sketches by layer name, as stored in native adapters and certificates.

    Raises:
        AdapterError: the sketches are damaged, or of other weights with `strict`; without it, other weights warn.
    """
    for name, distance, limit in sketch_distances(fingerprint, base):
        if distance is None or distance > limit:
            message = f"this is another base model than the adapter was made for: {listed([name])} differs"
            if strict:
                raise AdapterError(f"{message}. Load the right base, or pass check_base=False to load it anyway.")
            warnings.warn(f"{message}; loaded anyway, because check_base=False", stacklevel=3)
            return


def sketch_distances(fingerprint: Any, base: nn.Module) -> Iterator[tuple[str, float | None, float]]:
    """Yield layer name, distance of its weight from its sketch (None for another shape), and the largest allowed one.

    Raises:
        AdapterError: the sketches are damaged.
    """
    for name, stored in fingerprint.items() if isinstance(fingerprint, dict) else ():
        try:
            weight = weight_of(base.get_submodule(name))
            distance = sketch_distance(weight.read(), stored)
        except AttributeError:
            continue
        yield name, distance, sketch_tolerance(weight.dtype, weight.bits, stored)


def require_configured_layers(header: Header, layers: Collection[str], skeleton: nn.Module) -> None:
    """Check that an adapter holds the layers that its configuration targets in a base, no fewer and no others.

    What is missing would start untrained, and what is not targeted would be ignored when PEFT loads the adapter.

    Args:
        header: of an adapter in any format.
        layers: names of the layers that it holds.
        skeleton: the base, on the meta device; it is not modified.

    Raises:
        AdapterError: the layers differ, by name, or PEFT cannot apply the configuration to this base.
    """
    skeleton = copy.deepcopy(skeleton)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if header.config["peft_type"] == "KASA":
                config: Any = KasaConfig.from_peft_type(**header.config)
                expected = {target.name for target in targets_of_base(config, skeleton)}
            else:
                # Without what would read weights, which the skeleton does not have: initial factors, trained tokens.
                without = {"init_lora_weights": True, "kasa_config": None, "trainable_token_indices": None}
                config = PeftConfig.from_peft_type(**{**header.config, **without})
                model = get_peft_model(skeleton, config, low_cpu_mem_usage=True).get_base_model()
                expected = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    except KasatuneError:
        raise
    except Exception as fault:  # PEFT raises many unrelated types for a configuration that it cannot use
        raise AdapterError(
            f"{header.folder}: PEFT cannot apply this adapter to the base: {_first_line(fault)}"
        ) from fault
    missing, extra = sorted(expected - set(layers)), sorted(set(layers) - expected)
    if missing or extra:
        what = f"lacks {listed(missing)}" if missing else f"holds {listed(extra)}, which it does not target"
        raise AdapterError(f"{header.folder}: according to its configuration and this base, the adapter {what}")


def _first_line(fault: Exception) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]


def attach_with_peft(base: nn.Module, directory: Path, written: set[str], **options: Any) -> PeftModel:
    """Load the adapter in `directory` onto the base with PEFT; the base is restored if that fails.

    Args:
        base: the base model.
        directory: of a native or a stock LoRA adapter.
        written: names of parameters of the base that the adapter overwrites.
        options: of `PeftModel.from_pretrained`.

    Raises:
        AdapterError: PEFT cannot load it.
    """
    with unchanged_on_failure(base, written):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Found missing adapter keys")
                warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
                return PeftModel.from_pretrained(base, str(directory), **options)
        except KasatuneError:
            raise
        except Exception as fault:  # PEFT raises many unrelated types for a configuration that it cannot use
            raise AdapterError(f"{directory}: PEFT cannot load this adapter: {_first_line(fault)}") from fault


def attach_lora(base: nn.Module, header: Header, written: set[str], **options: Any) -> PeftModel:
    """`attach_with_peft` for a stock LoRA adapter, every tensor of which must belong to a layer, and vice versa."""
    embeddings = embedding_parameters(base)
    with unchanged_on_failure(base, written):
        model = attach_with_peft(base, header.folder, written, **options)
        name = options.get("adapter_name", "default")
        state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        expected, stored = {key for key in state if not is_echo(key, state)}, set(header.shapes)
        missing = sorted(expected - stored)
        biases = _trained_biases(model, header)
        extra = sorted(key for key in stored - expected - biases if base_name(key) not in embeddings)
        if missing or extra:
            what = f"lacks {listed(missing)}" if missing else f"holds {listed(extra)}, which belong to no layer"
            raise AdapterError(f"{header.folder}: according to its configuration and this base, the adapter {what}")
    return model


def _trained_biases(model: PeftModel, header: Header) -> set[str]:
    """Keys of the biases of adapted layers with `bias: lora_only`, which PEFT before 0.21 leaves out of its state."""
    if header.config.get("bias") != "lora_only":
        return set()
    layers = {name: m.get_base_layer() for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    return {f"{name}.base_layer.bias" for name, base in layers.items() if getattr(base, "bias", None) is not None}


def attach_files(base: nn.Module, files: AdapterFiles, written: set[str], **options: Any) -> PeftModel:
    """`attach_with_peft` for a native adapter in memory."""
    with tempfile.TemporaryDirectory(prefix="kasatune-") as folder:
        write(files, Path(folder))
        return attach_with_peft(base, Path(folder), written, **options)


@contextmanager
def unchanged_on_failure(model: nn.Module, written: Collection[str] = ()) -> Generator[None]:
    """Restore modules, parameters, hooks, flags and attributes of `model` if the body raises.

    Args:
        model: any model.
        written: names of its parameters whose values the body may overwrite in place; they are copied beforehand.
    """
    modules = [(module, _copied(module.__dict__)) for module in model.modules()]
    parameters = [(p, p.data, p.requires_grad) for p in model.parameters()]
    named = dict(model.named_parameters(remove_duplicate=False))
    values = {name: p.detach().clone() for name, p in named.items() if name in written}
    try:
        yield
    except BaseException:
        for module, attributes in modules:
            module.__dict__.clear()
            module.__dict__.update(_copied(attributes))
        for parameter, data, flag in parameters:
            parameter.data = data
            parameter.requires_grad_(flag)
        with torch.no_grad():
            for name, value in values.items():
                named[name].copy_(value)
        raise


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a module, with its containers copied shallowly."""
    return {key: value.copy() if isinstance(value, dict | set | list) else value for key, value in attributes.items()}


def _saved_modules(config: dict[str, Any], base: nn.Module) -> list[str]:
    """Names of the modules that PEFT trains entirely; a name matches by its ending, as in PEFT."""
    endings = [*(config.get("modules_to_save") or ()), *_ALWAYS_SAVED.get(str(config.get("task_type")), ())]
    return [name for name, _ in base.named_modules() if name and any(name.endswith(end) for end in endings)]


def _within(name: str, modules: list[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _adapted(name: str, layers: Collection[str]) -> bool:
    return name.rpartition(".")[0] in layers


def _is_buffer(base: nn.Module, name: str) -> bool:
    return any(buffer == name for buffer, _ in base.named_buffers())

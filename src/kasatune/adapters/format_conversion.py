"""Convert adapters between formats as plain data, and compute the outputs that a conversion must reproduce."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn

from kasatune.adapters.adapter_files import AdapterFiles, is_echo, listed
from kasatune.adapters.embedding_tensors import original_vocabulary
from kasatune.adapters.lora_diag_formats import from_authors, from_peft_kasa, to_authors, to_peft_kasa
from kasatune.adapters.lora_export import to_lora
from kasatune.adapters.native_format import require_untied, trained_factors, with_tails
from kasatune.adapters.parity import Outputs, fixed_outputs, flags_kept, untouched_copy
from kasatune.adapters.recognize_format import TITLES
from kasatune.adapters.reduce_rank import ReducedAdapter, reduce_rank
from kasatune.errors import AdapterError, CheckError, InputError, KasatuneError
from kasatune.kasa.layer import KasaLayer
from kasatune.kasa.model import KasaModel

# Formats without stored tails: their reader decomposes the base.
WITHOUT_TAILS = ("peft-kasa", "authors")

_WRITERS: dict[str, Callable[[AdapterFiles], AdapterFiles]] = {
    "lora": to_lora,
    "kasa": lambda source: source,
    "peft-kasa": to_peft_kasa,
    "authors": to_authors,
}


class Source(NamedTuple):
    """An adapter to convert, and the outputs that its conversion is compared with.

    Attributes:
        files: the adapter in the format `kind`.
        kind: "lora" or "kasa" (native).
        read_as: the format in which it was stored.
        outputs: outputs of the adapted model for the fixed inputs; None if they cannot be computed.
        reason: why they cannot be computed; None otherwise.
    """

    files: AdapterFiles
    kind: str
    read_as: str
    outputs: Outputs | None
    reason: str | None


def as_native(files: AdapterFiles, kind: str, base: nn.Module | None) -> AdapterFiles:
    """Convert an adapter of any KaSA format to the native one; without `base`, the result has no tails.

    Raises:
        AdapterError: the configuration is not supported, or the adapter belongs to another base.
    """
    if kind == "kasa":
        return files
    native = from_peft_kasa(files) if kind == "peft-kasa" else from_authors(files)
    if base is None:
        return native
    require_untied(base, trained_factors(native.tensors)[0], TITLES[kind])
    return with_tails(native, base)


def convert(
    source: AdapterFiles, kind: str, to: str, choose_rank: Callable[[Tensor], int] | None
) -> tuple[AdapterFiles, ReducedAdapter | None]:
    """Convert an adapter to the format `to`; also returns the result of a rank reduction, with its errors.

    Args:
        source: a stock LoRA adapter or a native KaSA adapter.
        kind: "lora" or "kasa".
        to: one of FORMATS.
        choose_rank: for "lora": returns the rank to keep, given a layer's singular values; None keeps layers exact.

    Raises:
        InputError: the format cannot hold the adapter.
    """
    if kind == "lora" and to != "lora":
        raise InputError(
            f"a LoRA adapter cannot be converted to {to!r}: it has no sigma and no truncated tail. Only "
            "'lora', with another rank, is possible"
        )
    converted = source if kind == "lora" else _WRITERS[to](source)
    if choose_rank is None:
        return converted, None
    reduced = reduce_rank(converted, choose_rank)
    return reduced.files, reduced


def needs_base(kind: str, to: str) -> bool:
    """Whether a conversion must decompose the base: from a format without tails to one with tails."""
    return kind in WITHOUT_TAILS and to not in WITHOUT_TAILS


def files_of_model(model: nn.Module) -> AdapterFiles:
    """The active KaSA adapter of a model as native files.

    Raises:
        InputError: the model has none.
        AdapterError: it holds NaN or infinity.
    """
    tuner = getattr(model, "base_model", None)
    if not isinstance(model, PeftModel) or not isinstance(tuner, KasaModel) or not tuner.active_adapters:
        raise InputError(f"export needs a PeftModel with an active KaSA adapter, got {type(model).__name__}")
    name = tuner.active_adapters[0]
    base = model.get_base_model()
    config = model.peft_config[name].to_dict()
    config["inference_mode"] = True
    if config.get("task_type") is None:
        config["auto_mapping"] = {
            "base_model_class": type(base).__name__,
            "parent_library": type(base).__module__,
        }
    config["base_model_name_or_path"] = config.get("base_model_name_or_path") or getattr(base, "name_or_path", None)
    embeddings = base.get_input_embeddings() if hasattr(base, "get_input_embeddings") else None  # pyright: ignore
    weight = getattr(embeddings, "weight", None)
    resized = weight is not None and weight.shape[0] != original_vocabulary(base)
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=resized)
    not_finite = [key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if not_finite:
        raise AdapterError(f"the adapter holds NaN or infinity in {listed(not_finite)}: its training diverged")
    own = {key: tensor.detach().clone() for key, tensor in tensors.items() if not is_echo(key, tensors)}
    return AdapterFiles(json.loads(json.dumps(config)), own)


def outputs_or_reason(model: nn.Module) -> tuple[Outputs | None, str | None]:
    """The outputs of a model for the fixed inputs, or why they cannot be computed."""
    if any(parameter.is_meta for parameter in model.parameters()):
        return None, "weights of the base are offloaded, and PEFT cannot load a LoRA adapter onto them"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fixed_outputs(model), None
    except KasatuneError:
        raise
    except Exception as fault:  # a model that does not take token ids may raise anything
        return None, _first_line(fault)


def outputs_of_written(
    twin: nn.Module, load: Callable[[nn.Module, Path], nn.Module], directory: Path, to: str
) -> Outputs:
    """The outputs of the base with the written adapter loaded onto it.

    Raises:
        CheckError: the written adapter cannot be loaded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fixed_outputs(load(twin, directory))
    except Exception as fault:  # any failure to load means that the conversion has failed
        raise CheckError(
            f"the conversion to {to!r} cannot be loaded again: {_first_line(fault)}; nothing was written"
        ) from fault


@contextmanager
def bare_twin(model: nn.Module) -> Generator[nn.Module]:
    """The unadapted base of an adapted or a bare model, sharing its weights; `model` is restored afterwards."""
    with flags_kept(model):
        if not isinstance(model, PeftModel):
            yield untouched_copy(model)
            return
        merged = [name for layer in model.modules() if isinstance(layer, KasaLayer) for name in layer.merged_adapters]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")
            with model.disable_adapter():
                yield untouched_copy(model)
        if merged:
            tuner: Any = model
            tuner.merge_adapter(adapter_names=[merged[0]])


def _first_line(fault: Exception) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]

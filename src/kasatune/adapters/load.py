"""Load an adapter onto its base: `load_adapter`, for every format that is recognized."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from torch import nn

from kasatune.adapters.adapter_files import Header, read_header, read_tensors
from kasatune.adapters.attach import (
    attach_files,
    attach_lora,
    attach_with_peft,
    check_fingerprint,
    check_on_base,
    check_repeated,
)
from kasatune.adapters.certificate import CERTIFICATE, read_certificate
from kasatune.adapters.embedding_tensors import require_trained_tokens
from kasatune.adapters.format_conversion import WITHOUT_TAILS, as_native, bare_twin
from kasatune.adapters.lora_settings import residual_init
from kasatune.adapters.parity import copy_parameters, own_parameters
from kasatune.adapters.recognize_format import TITLES, LayerShapes, checked_layers, format_of
from kasatune.weights.bitsandbytes_cpu import unpack_for_training_and_saving

logger = logging.getLogger("kasatune")


def load_adapter(
    base: nn.Module,
    directory: str | os.PathLike[str],
    *,
    adapter_name: str = "default",
    is_trainable: bool = False,
    check_base: bool = True,
) -> PeftModel:
    """Load an adapter onto its base; the format is recognized by content.

    A native KaSA adapter and a stock LoRA adapter load as they are. An adapter of PEFT's KaSA or of the authors' code
    is converted to a native one: the base is decomposed once, by their rule, and is not modified. The recognized format
    is in the returned model's `kasatune_format`, and is logged.

    Args:
        base: the base model, without an adapter.
        directory: of the adapter.
        adapter_name: the name to give it.
        is_trainable: whether it will be trained further.
        check_base: False loads it onto a base that it was not made for, with a warning.

    Raises:
        InputError: the base has an adapter already.
        AdapterError: there is no adapter, it is damaged, or it was made for another base; the base model is restored.
    """
    model, layers = load_with_layers(
        base, directory, adapter_name=adapter_name, is_trainable=is_trainable, check_base=check_base
    )
    logger.info("%s: %s of %d layers", directory, TITLES[model.kasatune_format], len(layers))
    return model


def load_with_layers(
    base: nn.Module,
    directory: str | os.PathLike[str],
    *,
    adapter_name: str = "default",
    is_trainable: bool = False,
    check_base: bool = True,
) -> tuple[PeftModel, dict[str, LayerShapes]]:
    """`load_adapter` without logging; also returns the adapted layers by name."""
    header, kind, layers = read_checked(directory)
    check_on_base(header, layers, base, kind)
    check_repeated(header, base)
    # PEFT asks the base for its state_dict, which damages 4-bit weights that were evaluated before.
    unpack_for_training_and_saving(base)
    files = read_tensors(header)
    written = own_parameters(files.tensors) | own_parameters(header.repeated)
    if residual_init(files.config) is not None:
        written |= {f"{name}.weight" for name in layers}
    options = {"adapter_name": adapter_name, "is_trainable": is_trainable}
    if kind != "kasa" and os.path.lexists(header.folder / CERTIFICATE):
        fingerprint = read_certificate(header.folder)["base"].get("fingerprint")
        check_fingerprint(fingerprint, base, strict=check_base)
    if kind == "lora":
        model = attach_lora(base, header, written, **options)
    elif kind == "kasa":
        model = attach_with_peft(base, header.folder, written, check_base=check_base, **options)
    else:
        model = attach_files(base, as_native(files, kind, base), written, **options)
    model.kasatune_format = kind  # pyright: ignore[reportArgumentType]
    return model, layers


@contextmanager
def twin_for_loading(model: nn.Module, directory: Path, *, with_peft: bool = False) -> Generator[nn.Module]:
    """The unadapted base of a model, as a copy on which an adapter can be loaded while `model` is not modified.

    Args:
        model: an adapted or a bare model, restored afterwards.
        directory: of the adapter that will be loaded.
        with_peft: it will be loaded by PEFT alone, which truncates the weights of the base for KaSA.
    """
    header, kind, layers = read_checked(directory)
    changes_base = residual_init(header.config) is not None or (with_peft and kind in WITHOUT_TAILS)
    weights = {f"{name}.weight" for name in layers} if changes_base else set[str]()
    with bare_twin(model) as twin:
        copy_parameters(twin, weights | own_parameters(header.shapes) | own_parameters(header.repeated))
        yield twin


def read_checked(directory: str | os.PathLike[str]) -> tuple[Header, str, dict[str, LayerShapes]]:
    """Header, format and layers of an adapter directory whose configuration and tensors agree.

    Raises:
        AdapterError: there is no complete adapter.
    """
    header = read_header(directory)
    require_trained_tokens(header)
    kind = format_of(header)
    return header, kind, checked_layers(header, kind)

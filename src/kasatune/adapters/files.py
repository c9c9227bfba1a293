"""Adapters on disk: written in the format asked for, and recognised by content when read."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from kasatune.adapters.attach import check_fingerprint, check_on_base, check_repeated, place, place_lora, place_native
from kasatune.adapters.conversion import (
    Source,
    as_native,
    bare_twin,
    convert,
    needs_base,
    of_model,
    outputs_of_written,
    outputs_or_reason,
)
from kasatune.adapters.formats import FORMATS, TITLES, LayerShapes, checked_layers, format_of
from kasatune.adapters.parity import own_parameters, own_weights
from kasatune.adapters.parity_report import (
    CERTIFICATE,
    certificate,
    describe_base,
    output_parity,
    require_parity,
    require_stated,
    update_parity,
)
from kasatune.adapters.recompress import fixed_rank, rank_for_energy
from kasatune.adapters.storage import Header, read_header, read_json, read_tensors, write, write_json
from kasatune.errors import InputError
from kasatune.io.atomic import new_directory
from kasatune.weights.bitsandbytes_cpu import unpack_for_training_and_saving

logger = logging.getLogger("kasatune")


def export_adapter(
    model_or_dir: nn.Module | str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    to: str = "lora",
    *,
    rank: int | None = None,
    base: nn.Module | None = None,
) -> Path:
    """Write an adapter in another format, with a certificate of how near it comes to its source.

    "lora": `W' - W = [ -U_d S_d | s B diag(sigma) ] [ Vh_d ; A ]`, a stock PEFT LoRA of rank 2r and scaling 1 on the
    untouched base, for anything that serves LoRA. "kasa": the native form, which goes on training. "peft-kasa" and
    "authors": the forms that PEFT and the authors' code read, both of which decompose the base again. What each form
    can hold is in docs/formats.md; what it cannot hold exactly is refused.

    certificate.json holds the difference of the outputs for fixed inputs, where a model is at hand, and that of the
    updates of every layer.

    Args:
        model_or_dir: a PeftModel with an active KaSA adapter, or the directory of an adapter in any of the formats.
        out_dir: a directory that does not exist or is empty; it appears whole or not at all.
        to: the format.
        rank: for "lora", the largest rank of a layer: the nearest update of that rank, its error in the certificate.
        base: the untouched base of a directory's adapter, on which the outputs are measured; it is left as it is. An
            adapter of PEFT or of the authors becomes "lora" or "kasa" only with it.

    Returns:
        The directory written.

    Raises:
        InputError: an unknown format, one that cannot hold the adapter, or a model without a KaSA adapter.
        AdapterError: the source directory holds no whole adapter, or one of another base.
        OutputError: out_dir holds something.
        CheckError: the result differs from its source by more than rounding explains; nothing is written.
    """
    if to not in FORMATS:
        raise InputError(f"to={to!r} is no adapter format here; choose one of {', '.join(FORMATS)}")
    if rank is not None and to != "lora":
        raise InputError(f"rank={rank} goes with to='lora' alone: the {to!r} form keeps the rank that was trained")
    return _export(model_or_dir, Path(out_dir), to, None if rank is None else fixed_rank(rank), base)


def shrink_adapter(
    model_or_dir: nn.Module | str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    rank: int | None = None,
    energy: float | None = None,
    base: nn.Module | None = None,
) -> Path:
    """Write a smaller stock LoRA adapter: the largest singular triplets of each layer's whole update W' - W.

    What is dropped from W counts as part of the update, so that the result is the nearest of its rank to what the
    adapter does; a KaSA tail, whose singular values are the smallest of W, is what goes first.

    Args:
        model_or_dir: as in `export_adapter`.
        out_dir: as in `export_adapter`; the errors are in its certificate.json.
        rank: the largest rank of a layer; or
        energy: the share of each layer's squared singular values to keep, above 0 and at most 1.
        base: as in `export_adapter`.

    Raises:
        InputError: neither or both of rank and energy, or one out of its range; and as `export_adapter`.
    """
    if (rank is None) == (energy is None):
        raise InputError("give either a rank or an energy: rank=8, or energy=0.99 to keep 99 % of each layer's update")
    choose = fixed_rank(rank) if rank is not None else rank_for_energy(float(energy or 0))
    return _export(model_or_dir, Path(out_dir), "lora", choose, base)


def load_adapter(
    base: nn.Module,
    directory: str | os.PathLike[str],
    *,
    adapter_name: str = "default",
    is_trainable: bool = False,
    check_base: bool = True,
) -> PeftModel:
    """Put an adapter on its base; the format is recognised by content.

    A native KaSA adapter and a stock LoRA adapter load as they are. An adapter of PEFT's KaSA or of the authors' code
    becomes a native one: the base is decomposed once, by their rule, and stays untouched. The format that was found
    is in the returned model's `kasatune_format`, and is logged.

    Args:
        base: the base model, not yet adapted.
        directory: of the adapter.
        adapter_name: what to call it.
        is_trainable: whether it goes on training.
        check_base: False loads it on a base that it was not made for, with a warning.

    Raises:
        InputError: the base holds an adapter already.
        AdapterError: no adapter there, a damaged one, or one of another base; the base model is left as it was.
    """
    model, found = _load(base, directory, adapter_name=adapter_name, is_trainable=is_trainable, check_base=check_base)
    logger.info("%s: %s", directory, found)
    return model


def _load(
    base: nn.Module,
    directory: str | os.PathLike[str],
    *,
    adapter_name: str = "default",
    is_trainable: bool = False,
    check_base: bool = True,
) -> tuple[PeftModel, str]:
    """`load_adapter`, and what was found in words."""
    header, kind, layers = read_checked(directory)
    check_on_base(header, layers, base, kind)
    check_repeated(header, base)
    # PEFT asks the base for its state_dict, which damages 4-bit weights that were evaluated before.
    unpack_for_training_and_saving(base)
    files = read_tensors(header)
    written = own_parameters(files)
    options = {"adapter_name": adapter_name, "is_trainable": is_trainable}
    if kind != "kasa" and os.path.lexists(header.folder / CERTIFICATE):
        recorded = read_json(header.folder, CERTIFICATE).get("base")
        check_fingerprint(recorded.get("fingerprint") if isinstance(recorded, dict) else None, base, strict=check_base)
    if kind == "lora":
        model = place_lora(base, header, written, **options)
    elif kind == "kasa":
        model = place(base, header.folder, written, check_base=check_base, **options)
    else:
        model = place_native(base, as_native(files, kind, base), written, **options)
    model.kasatune_format = kind  # pyright: ignore[reportArgumentType]
    return model, f"{TITLES[kind]} of {len(layers)} layers"


def read_checked(directory: str | os.PathLike[str]) -> tuple[Header, str, dict[str, LayerShapes]]:
    """Header, format and layers of an adapter directory whose configuration and tensors agree.

    Raises:
        AdapterError: there is no whole adapter.
    """
    header = read_header(directory)
    kind = format_of(header)
    return header, kind, checked_layers(header, kind)


def _source_of_model(model: nn.Module) -> Source:
    return Source(of_model(model), "kasa", "kasa", *outputs_or_reason(model))


def _source_of_directory(directory: str | os.PathLike[str], base: nn.Module | None, to: str) -> Source:
    header, kind, layers = read_checked(directory)
    if base is None and needs_base(kind, to):
        raise InputError(
            f"{header.folder} holds {TITLES[kind]}, which leaves it to its reader to drop singular triplets: {to!r} "
            "needs the base model that they come from (base=..., or --base MODEL)"
        )
    if base is not None:
        check_on_base(header, layers, base, kind)
    files = read_tensors(header)
    source = (files, "lora") if kind == "lora" else (as_native(files, kind, base), "kasa")
    if base is None:
        return Source(*source, kind, None, "no base model was given")
    with bare_twin(base) as twin:
        return Source(*source, kind, *outputs_or_reason(_read_here(twin, header.folder)))


def _export(
    model_or_dir: nn.Module | str | os.PathLike[str],
    out: Path,
    to: str,
    choose_rank: Callable[[Tensor], int] | None,
    base: nn.Module | None,
) -> Path:
    # Reading the result back makes adapters, which draws random numbers that are not the caller's.
    with torch.random.fork_rng(devices=[]):
        if isinstance(model_or_dir, nn.Module):
            return _write(_source_of_model(model_or_dir), model_or_dir, out, to, choose_rank)
        return _write(_source_of_directory(model_or_dir, base, to), base, out, to, choose_rank)


def _write(
    source: Source, model: nn.Module | None, out: Path, to: str, choose_rank: Callable[[Tensor], int] | None
) -> Path:
    made, lost = convert(source.files, source.kind, to, choose_rank)
    with new_directory(out) as directory:
        write(made, directory)
        header, kind, _ = read_checked(directory)
        updates = update_parity((source.files, source.kind), (read_tensors(header), kind))
        outputs, base = None, None
        if model is not None:
            with bare_twin(model) as twin:
                base = describe_base(twin, source.files)
                if source.outputs is not None:
                    after = outputs_of_written(twin, _READERS.get(to, _read_here), directory, to)
                    outputs = output_parity(source.outputs, after)
        if lost is None:
            require_parity(updates, outputs, to)
        else:
            require_stated(updates, lost)
        write_json(directory / CERTIFICATE, certificate(source, to, directory, updates, outputs, lost, base))
    return out


def _read_here(base: nn.Module, directory: Path) -> nn.Module:
    return _load(base, directory)[0]


def _read_by_peft(base: nn.Module, directory: Path) -> nn.Module:
    """PEFT itself, which is what reads these formats elsewhere."""
    return place(base, directory, set())


def _read_by_peft_kasa(base: nn.Module, directory: Path) -> nn.Module:
    """PEFT writes the truncated weights into the base: the layers concerned get weights of their own first."""
    own_weights(base, list(read_checked(directory)[2]))
    return place(base, directory, set())


_READERS = {"lora": _read_by_peft, "peft-kasa": _read_by_peft_kasa}

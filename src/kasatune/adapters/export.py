"""Export an adapter to another format, or to a smaller rank, and certify how near the result is to its source."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import peft
import torch
from torch import Tensor, nn

from kasatune.adapters.adapter_files import AdapterFiles, Header, read_repeated, read_tensors, write
from kasatune.adapters.attach import attach_with_peft, check_on_base
from kasatune.adapters.certificate import write_certificate
from kasatune.adapters.embedding_tensors import base_name, embedding_parameters, original_vocabulary
from kasatune.adapters.format_conversion import (
    WITHOUT_TAILS,
    Source,
    as_native,
    convert,
    files_of_model,
    needs_base,
    outputs_of_written,
    outputs_or_reason,
)
from kasatune.adapters.load import load_with_layers, read_checked, twin_for_loading
from kasatune.adapters.lora_export import with_equal_ranks
from kasatune.adapters.lora_settings import check_settings, residual_init
from kasatune.adapters.native_format import require_untied
from kasatune.adapters.parity_report import (
    class_and_sha256,
    conversion_certificate,
    output_parity,
    require_parity,
    require_stated_loss,
    update_parity,
)
from kasatune.adapters.recognize_format import FORMATS, TITLES
from kasatune.adapters.reduce_rank import fixed_rank, rank_for_energy
from kasatune.adapters.residual_lora import plain_on_model
from kasatune.errors import InputError
from kasatune.io.atomic import new_directory


def export_adapter(
    model_or_dir: nn.Module | str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    to: str = "lora",
    *,
    rank: int | None = None,
    equal_ranks: bool = False,
    base: nn.Module | None = None,
) -> Path:
    """Write an adapter in another format, with a certificate of how near it is to its source.

    "lora": `W' - W = [ -U_d S_d | s B diag(sigma) ] [ Vh_d ; A ]`, a stock PEFT LoRA of rank 2r and scaling 1 on the
    unmodified base, for anything that serves LoRA. "kasa": the native format, which can be trained further. "peft-kasa"
    and "authors": the formats that PEFT and the authors' code read, both of which decompose the base again. What each
    format can hold is in docs/formats.md; an adapter that it cannot hold exactly is refused.

    certificate.json holds the difference of the outputs for fixed inputs, if a model is given, and that of the updates
    of every layer.

    Args:
        model_or_dir: a PeftModel with an active KaSA adapter, or the directory of an adapter in any of the formats.
        out_dir: a directory that does not exist or is empty; it is written completely or not at all.
        to: the format.
        rank: for "lora", the largest rank of a layer: the nearest update of that rank, its error in the certificate.
        equal_ranks: for "lora", pad layers of a smaller rank with zeros to the largest, for servers that read a single
            rank from adapter_config.json, as SGLang does.
        base: the unadapted base of a directory's adapter, on which the outputs are measured; it is not modified. An
            adapter of PEFT or of the authors can be converted to "lora" or "kasa" only with it.

    Returns:
        The directory written.

    Raises:
        InputError: an unknown format, one that cannot hold the adapter, or a model without a KaSA adapter.
        AdapterError: the source directory holds no complete adapter, or one of another base.
        OutputError: out_dir is not empty.
        CheckError: the result differs from its source by more than rounding explains; nothing is written.
    """
    if to not in FORMATS:
        raise InputError(f"to={to!r} is not a known adapter format; choose one of {', '.join(FORMATS)}")
    if rank is not None and to != "lora":
        raise InputError(f"rank={rank} requires to='lora': the {to!r} format keeps the trained rank")
    if equal_ranks and to != "lora":
        raise InputError(f"equal_ranks requires to='lora': the {to!r} format keeps the rank of each layer")
    return _export(model_or_dir, Path(out_dir), to, None if rank is None else fixed_rank(rank), base, equal_ranks)


def rank_rule(rank: int | None, energy: float | None) -> Callable[[Tensor], int]:
    """The choice of each layer's rank: at most `rank`, or the smallest that keeps a share `energy` of the update.

    Raises:
        InputError: neither or both are given, or one is out of its range.
    """
    if (rank is None) == (energy is None):
        raise InputError("give either a rank or an energy: rank=8, or energy=0.99 to keep 99 % of each layer's update")
    return fixed_rank(rank) if rank is not None else rank_for_energy(float(energy or 0))


def lora_ranks(directory: str | os.PathLike[str]) -> dict[str, int]:
    """The rank that each layer of an adapter has as a plain LoRA, by module name; reads the headers of its files.

    r + d for a native adapter that drops a component of rank d, which is 2r as published; 2r for the formats of PEFT
    and of the authors, and for PiSSA and OLoRA.

    Raises:
        AdapterError: there is no complete adapter.
    """
    header, kind, layers = read_checked(directory)
    if kind == "kasa":
        return {name: layer.rank + layer.parts["kasa_tail_V"][0] for name, layer in layers.items()}
    parts = 1 if kind == "lora" and residual_init(header.config) is None else 2
    return {name: parts * layer.rank for name, layer in layers.items()}


def export_smaller_lora(
    model_or_dir: nn.Module | str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    rank: int | None = None,
    energy: float | None = None,
    base: nn.Module | None = None,
) -> Path:
    """Write a smaller stock LoRA adapter: the largest singular triplets of each layer's complete update W' - W.

    The truncated tail of W counts as part of the update, so that the result is the nearest update of its rank. The
    tail is lost first, because its singular values are the smallest of W.

    Args:
        model_or_dir: as in `export_adapter`.
        out_dir: as in `export_adapter`; the errors are in its certificate.json.
        rank: the largest rank of a layer; or
        energy: the share of each layer's squared singular values to keep, above 0 and at most 1.
        base: as in `export_adapter`.

    Raises:
        InputError: neither or both of rank and energy, or one out of its range; and as `export_adapter`.
    """
    choose = rank_rule(rank, energy)
    return _export(model_or_dir, Path(out_dir), "lora", choose, base)


def _export(
    model_or_dir: nn.Module | str | os.PathLike[str],
    out: Path,
    to: str,
    choose_rank: Callable[[Tensor], int] | None,
    base: nn.Module | None,
    equal_ranks: bool = False,
) -> Path:
    # Reading the result back creates adapters, which must not advance the caller's random state.
    with torch.random.fork_rng(devices=[]):
        if isinstance(model_or_dir, nn.Module):
            return _write(_source_of_model(model_or_dir), model_or_dir, out, to, choose_rank, equal_ranks)
        return _write(_source_of_directory(model_or_dir, base, to), base, out, to, choose_rank, equal_ranks)


def _source_of_model(model: nn.Module) -> Source:
    return Source(files_of_model(model), "kasa", "kasa", *outputs_or_reason(model))


def _source_of_directory(directory: str | os.PathLike[str], base: nn.Module | None, to: str) -> Source:
    header, kind, layers = read_checked(directory)
    if base is None and needs_base(kind, to):
        raise InputError(
            f"{header.folder} holds {TITLES[kind]}, whose reader truncates the base: {to!r} needs the base model that "
            "it was trained on (base=..., or --base MODEL)"
        )
    check_settings(header.config, kind)
    if base is not None:
        check_on_base(header, layers, base, kind)
    files = read_tensors(header)
    if header.repeated and _is_resized(header, base):
        files = AdapterFiles(files.config, {**files.tensors, **read_repeated(header)})
    source = (plain_on_model(files, base), "lora") if kind == "lora" else (as_native(files, kind, base), "kasa")
    if base is None:
        return Source(*source, kind, None, "no base model was given")
    with twin_for_loading(base, header.folder) as twin:
        return Source(*source, kind, *outputs_or_reason(_load(twin, header.folder)))


def _is_resized(header: Header, base: nn.Module | None) -> bool:
    """Whether the base weights that an adapter holds are those of a resized vocabulary, which a copy must hold too."""
    if base is None:
        return True
    known, rows = embedding_parameters(base), original_vocabulary(base)
    return any(base_name(key) in known and shape[0] != rows for key, shape in header.repeated.items())


def _write(
    source: Source,
    model: nn.Module | None,
    out: Path,
    to: str,
    choose_rank: Callable[[Tensor], int] | None,
    equal_ranks: bool,
) -> Path:
    converted, reduced = convert(source.files, source.kind, to, choose_rank)
    if equal_ranks:
        converted = with_equal_ranks(converted)
    if to == "peft-kasa" and source.outputs is not None and not hasattr(peft, "KasaConfig"):
        raise InputError(
            f"to={to!r} requires PEFT 0.21 or newer, which reads this format: PEFT {peft.__version__} is installed; "
            "pip install 'peft>=0.21.2', or export to 'lora', which every PEFT reads"
        )
    with new_directory(out) as directory:
        write(converted, directory)
        header, kind, _ = read_checked(directory)
        updates = update_parity((source.files, source.kind), (read_tensors(header), kind))
        outputs, base = None, None
        if model is not None:
            with twin_for_loading(model, directory, with_peft=to in _LOADERS) as twin:
                if to in WITHOUT_TAILS:
                    require_untied(twin, read_checked(directory)[2], TITLES[to])
                base = class_and_sha256(twin, source.files)
                if source.outputs is not None:
                    after = outputs_of_written(twin, _LOADERS.get(to, _load), directory, to)
                    outputs = output_parity(source.outputs, after)
        if reduced is None:
            require_parity(updates, outputs, to)
        else:
            require_stated_loss(updates, reduced)
        write_certificate(directory, conversion_certificate(source, to, directory, updates, outputs, reduced, base))
    return out


def _load(base: nn.Module, directory: Path) -> nn.Module:
    return load_with_layers(base, directory)[0]


def _load_with_peft(base: nn.Module, directory: Path) -> nn.Module:
    """Load with PEFT alone, as the readers of these formats do."""
    return attach_with_peft(base, directory, set())


_LOADERS = {"lora": _load_with_peft, "peft-kasa": _load_with_peft}

"""The command `kasatune export`: write an adapter in another format, including GGUF, and measure the result."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kasatune.adapter_tools.ollama import MODELFILE, write_modelfile
from kasatune.adapter_tools.resolve import (
    Source,
    find_source,
    is_base_local,
    load_base_model,
    local_base,
    read_config,
    require_convertible,
)
from kasatune.adapter_tools.tokenizer import copy_saved_tokenizer
from kasatune.adapters.adapter_files import file_sha256, read_tensors
from kasatune.adapters.certificate import Certificate, read_certificate, write_certificate
from kasatune.adapters.export import export_adapter, lora_ranks
from kasatune.adapters.gguf_export import FILE, architecture_of, read_gguf, write_gguf
from kasatune.adapters.load import read_checked
from kasatune.adapters.lora_export import stock_layers
from kasatune.adapters.parity import UPDATE_LIMIT, update_difference
from kasatune.adapters.recognize_format import FORMATS
from kasatune.adapters.reduce_rank import fixed_rank
from kasatune.errors import CheckError, InputError
from kasatune.io.atomic import new_directory, require_free
from kasatune.io.library_noise import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GGUF = ("gguf", "ollama")


def convert_adapter(
    directory: Path,
    out: Path,
    to: str,
    *,
    base: str | None = None,
    rank: int | None = None,
    max_rank: int | None = None,
    equal_ranks: bool = False,
) -> Certificate:
    """Write the adapter of a run, or an adapter, in another format; see `kasatune.export_adapter`.

    The outputs are measured on the base that `base` names; if it is None, on the one that the recipe or the adapter
    names, if that is on this machine; otherwise only the updates are compared. Besides the formats of `export_adapter`
    there is "gguf": adapter.gguf, a LoRA adapter for llama.cpp; and "ollama": the same with a Modelfile.

    Args:
        directory: a run or an adapter.
        out: a directory that does not exist or is empty.
        to: the format.
        base: the base model; None for the one that the recipe or the adapter names.
        rank: the largest rank of a layer: the nearest update of that rank; None keeps every layer exactly.
        max_rank: the largest rank that the server allows; a result with a larger one is refused.
        equal_ranks: for "lora", pad layers of a smaller rank with zeros to the largest one.

    Returns:
        The certificate.

    Raises:
        InputError: there is no adapter, the format is unknown, or it cannot hold the adapter.
        ModelError: `base` cannot be loaded.
        OutputError: `out` is not empty.
        CheckError: the result differs from its source by more than rounding explains; nothing is written.
        MissingExtraError: "gguf" without the gguf package.
    """
    if to not in (*FORMATS, *_GGUF):
        known = ", ".join((*FORMATS, *_GGUF))
        raise InputError(f"to={to!r} is not a known adapter format; choose one of {known}")
    for name, value in (("rank", rank), ("max_rank", max_rank)):
        if value is not None:
            if to not in ("lora", *_GGUF):
                raise InputError(f"{name}={value} requires to='lora': the {to!r} format keeps the trained rank")
            fixed_rank(value, name)
    if equal_ranks and to != "lora":
        raise InputError(f"equal_ranks requires to='lora': {to!r} keeps the rank of each layer")
    require_free(out)
    source = find_source(directory, base)
    require_convertible(source)
    if max_rank is not None:
        _require_rank(source, rank, max_rank)
    if to in _GGUF:
        # Fail before the base is loaded.
        architecture_of(read_config(local_base(source)))
    model = load_base_model(source) if base is not None or is_base_local(source) else None
    with quiet():
        if to in _GGUF:
            export_gguf(source, out, model, rank, modelfile=to == "ollama")
        else:
            export_adapter(source.adapter, out, to, rank=rank, equal_ranks=equal_ranks, base=model)
            copy_saved_tokenizer(source.adapter, source.run, out)
    return read_certificate(out)


def _require_rank(source: Source, rank: int | None, max_rank: int) -> None:
    ranks = lora_ranks(source.adapter)
    layer = max(ranks, key=lambda name: ranks[name])
    if (largest := min(ranks[layer], rank or ranks[layer])) > max_rank:
        raise InputError(
            f"{source.given}: as a LoRA, {layer} has rank {largest}, above max_rank={max_rank}; let the server allow "
            f"rank {largest} (--max-lora-rank of vLLM and SGLang), or write the nearest adapter of rank {max_rank} "
            f"with --rank {max_rank}, whose error is in its certificate"
        )


def export_gguf(
    source: Source,
    out: Path,
    model: PreTrainedModel | None,
    rank: int | None = None,
    *,
    modelfile: bool = False,
) -> None:
    """Write the adapter of a source as adapter.gguf with a certificate; the file is read back and compared.

    Args:
        source: the resolved adapter.
        out: a directory that does not exist or is empty.
        model: the base, on which the outputs of the LoRA adapter are measured; None if it is not on this machine.
        rank: the largest rank of a layer; None keeps every layer exactly.
        modelfile: also write a Modelfile for Ollama.

    Raises:
        InputError: the adapter holds something that a GGUF adapter cannot, by name.
        CheckError: the file differs from the adapter.
        MissingExtraError: the gguf package is not installed.
    """
    config = model.config.to_dict() if model is not None else read_config(local_base(source))
    with tempfile.TemporaryDirectory(prefix="kasatune-") as folder:
        lora = export_adapter(source.adapter, Path(folder) / "lora", rank=rank, base=model)
        files = read_tensors(read_checked(lora)[0])
        certificate = read_certificate(lora)
    with new_directory(out) as unfinished:
        names = write_gguf(files, config, unfinished / FILE)
        written = read_gguf(unfinished / FILE, config)
        worst = max(
            update_difference(
                (B.double(), A.double()), (written[names[name]].B.double(), written[names[name]].A.double())
            )
            for name, (A, B) in stock_layers(files)[0].items()
        )
        if not worst <= UPDATE_LIMIT:
            raise CheckError(f"{FILE} changes an update by {worst:.2g} of its norm; nothing was written")
        certificate["to"] = "ollama" if modelfile else "gguf"
        if modelfile:
            write_modelfile(source, unfinished)
        written_files = (FILE, MODELFILE) if modelfile else (FILE,)
        certificate["files"] = {name: file_sha256(unfinished / name) for name in written_files}
        certificate["gguf"] = {"largest_relative_difference": worst}
        write_certificate(unfinished, certificate)

"""An adapter written in another format, and measured."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kasatune.adapter_tools.resolve import (
    Source,
    checkpoint_folder,
    find_source,
    is_at_hand,
    load_base_model,
    read_config,
)
from kasatune.adapters.files import export_adapter, read_checked
from kasatune.adapters.formats import FORMATS
from kasatune.adapters.gguf_export import FILE, architecture_of, read_gguf, write_gguf
from kasatune.adapters.lora_export import stock_layers
from kasatune.adapters.parity import UPDATE_LIMIT, update_difference
from kasatune.adapters.parity_report import CERTIFICATE
from kasatune.adapters.storage import file_sha256, read_json, read_tensors, write_json
from kasatune.errors import CheckError, InputError
from kasatune.io.atomic import new_directory, require_free
from kasatune.io.library_noise import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def convert_adapter(
    directory: Path, out: Path, to: str, *, base: str | None = None, rank: int | None = None
) -> dict[str, Any]:
    """The adapter of a run, or an adapter, written in another format; see `kasatune.adapters.files.export_adapter`.

    The outputs are measured on the base that `base` names; where it is None, on the one that the recipe or the adapter
    names if that is on this machine, and else on the updates alone. "gguf" is written beside the formats of
    `export_adapter`: adapter.gguf, a LoRA adapter for llama.cpp.

    Returns:
        The certificate.

    Raises:
        InputError: no adapter, an unknown format, or one that cannot hold the adapter.
        ModelError: the base that was named cannot be loaded.
        OutputError: `out` holds something.
        CheckError: the result differs from its source by more than rounding explains; nothing is written.
        MissingExtraError: "gguf" without the gguf package.
    """
    if to not in (*FORMATS, "gguf"):
        raise InputError(f"to={to!r} is no adapter format here; choose one of {', '.join(FORMATS)}, gguf")
    require_free(out)
    source = find_source(directory, base)
    if to == "gguf":
        # Whether there can be one is known before the base is loaded.
        architecture_of(read_config(checkpoint_folder(source)))
    model = load_base_model(source) if base is not None or is_at_hand(source) else None
    with quiet():
        if to == "gguf":
            export_gguf(source, out, model, rank)
        else:
            export_adapter(source.adapter, out, to, rank=rank, base=model)
    return read_json(out, CERTIFICATE)


def export_gguf(source: Source, out: Path, model: PreTrainedModel | None, rank: int | None = None) -> None:
    """Write the stock LoRA adapter of a source as adapter.gguf, read back and compared, with its certificate.

    Args:
        source: of the adapter.
        out: a directory that does not exist or is empty.
        model: the base, on which the outputs of the LoRA adapter are measured; None where it is not at hand.
        rank: the largest rank of a layer, None for all of it.

    Raises:
        InputError: something that a GGUF adapter cannot hold, by name.
        CheckError: what was written differs.
        MissingExtraError: the gguf package is not installed.
    """
    config = model.config.to_dict() if model is not None else read_config(checkpoint_folder(source))
    with tempfile.TemporaryDirectory(prefix="kasatune-") as folder:
        lora = export_adapter(source.adapter, Path(folder) / "lora", rank=rank, base=model)
        files = read_tensors(read_checked(lora)[0])
        record = read_json(lora, CERTIFICATE)
    with new_directory(out) as made:
        names = write_gguf(files, config, made / FILE)
        written = read_gguf(made / FILE, config)
        worst = max(
            update_difference(
                (B.double(), A.double()), (written[names[name]].B.double(), written[names[name]].A.double())
            )
            for name, (A, B) in stock_layers(files)[0].items()
        )
        if not worst <= UPDATE_LIMIT:
            raise CheckError(f"{FILE} changes an update by {worst:.2g} of its norm; nothing was written")
        record |= {
            "to": "gguf",
            "files": {FILE: file_sha256(made / FILE)},
            "gguf": {"largest_relative_difference": worst},
        }
        write_json(made / CERTIFICATE, record)

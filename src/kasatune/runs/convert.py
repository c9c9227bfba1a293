from __future__ import annotations

from pathlib import Path
from typing import Any

from kasatune.runs.quiet import quiet
from kasatune.runs.sources import find_source, is_at_hand, load_base_model
from kasatune.tuner.certificate import CERTIFICATE
from kasatune.tuner.files import export_adapter
from kasatune.tuner.storage import read_json, require_free


def convert_adapter(
    directory: Path, out: Path, to: str, *, base: str | None = None, rank: int | None = None
) -> dict[str, Any]:
    """The adapter of a run, or an adapter, written in another format; see `kasatune.tuner.files.export_adapter`.

    The outputs are measured on the base that `base` names; where it is None, on the one that the recipe or the adapter
    names if that is on this machine, and else on the updates alone.

    Returns:
        The certificate.

    Raises:
        InputError: no adapter, an unknown format, or one that cannot hold the adapter.
        ModelError: the base that was named cannot be loaded.
        OutputError: `out` holds something.
        CheckError: the result differs from its source by more than rounding explains; nothing is written.
    """
    require_free(out)
    source = find_source(directory, base)
    model = load_base_model(source) if base is not None or is_at_hand(source) else None
    with quiet():
        export_adapter(source.adapter, out, to, rank=rank, base=model)
    return read_json(out, CERTIFICATE)

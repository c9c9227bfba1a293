"""An adapter merged into its base: a plain transformers checkpoint, made shard by shard from the base's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from kasatune.adapter_tools.base_files import open_base
from kasatune.adapter_tools.merge_files import copy_beside, write_config, write_weights
from kasatune.adapter_tools.merge_plan import Plan, plan_merge
from kasatune.adapter_tools.resolve import Source, find_source, read_config
from kasatune.adapters.files import read_checked
from kasatune.adapters.parity_report import CERTIFICATE, versions
from kasatune.adapters.storage import read_tensors, write_json
from kasatune.errors import ModelError
from kasatune.io.atomic import new_directory


class Merged(NamedTuple):
    """What a merge did.

    Attributes:
        out: the new checkpoint.
        layers: number of weights that took an update.
        replaced: names of parameters that the adapter brought whole, such as those of a head.
        rounding: the largest ||rounded(W') - W'||_F / ||W' - W||_F: what the base's dtype loses of an update.
        worst: the layer that loses it.
    """

    out: Path
    layers: int
    replaced: list[str]
    rounding: float
    worst: str


def merge(directory: Path, out: Path, base: str | None = None) -> Merged:
    """W <- W - tail + s B diag(sigma) A in every adapted layer, rounded once to the dtype of the base's files.

    The base is read from its safetensors files and the result is written to files of the same names, one tensor in
    memory at a time. Heads and biases that the adapter trained take the place of the base's; a weight that is tied to
    one that changes is written by itself. Configuration, tokenizer, generation configuration and chat template are
    kept. The result loads with plain transformers.

    Args:
        directory: a run, or an adapter in any of the formats that `load_adapter` reads.
        out: a directory that does not exist or is empty; it appears whole or not at all.
        base: the base's name or folder; the recipe's or the adapter's by default.

    Raises:
        InputError: no adapter, or nobody names the base.
        ModelError: the base cannot be had, is quantized, or has no weight that the adapter is for.
        AdapterError: the adapter is damaged or of another base.
        OutputError: `out` holds something.
    """
    source = find_source(directory, base)
    header, kind, layers = read_checked(source.adapter)
    with new_directory(out) as made:
        base_files = open_base(source)
        if read_config(base_files.folder).get("quantization_config"):
            raise ModelError(
                f"{base_files.folder} is quantized, and a merged weight would be rounded to its few values: name the "
                "full-precision base with --base, or serve the adapter beside the base (kasatune export --to lora)"
            )
        plan = plan_merge(read_tensors(header), kind, list(layers), base_files.model)
        digests, untied = write_weights(made, base_files, plan)
        write_config(made, base_files, untied=untied)
        copy_beside(base_files.folder, made)
        worst = max(plan.rounding, key=lambda name: plan.rounding[name])
        write_json(made / CERTIFICATE, _record(source, kind, plan, worst, digests))
    return Merged(out, len(plan.changes), sorted(plan.whole), plan.rounding[worst], worst)


def _record(source: Source, kind: str, plan: Plan, worst: str, digests: dict[str, str]) -> dict[str, Any]:
    return {
        "from": kind,
        "to": "checkpoint",
        "base": {"name": source.base_name, "fingerprint": source.config.get("base_fingerprint")},
        "rounding": {"largest_relative_difference": plan.rounding[worst], "layer": worst},
        "files": digests,
        "versions": versions(),
    }

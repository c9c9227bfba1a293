"""The command `kasatune shrink`: write a smaller LoRA adapter of a run or an adapter, and score what that costs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kasatune import methods
from kasatune.adapter_tools.resolve import Source, find_source, is_base_local, load_base_model, require_convertible
from kasatune.adapter_tools.tokenizer import copy_saved_tokenizer
from kasatune.adapters.certificate import Certificate, read_certificate, write_certificate
from kasatune.adapters.export import export_smaller_lora, rank_rule
from kasatune.adapters.load import load_adapter
from kasatune.data.tasks import load_task
from kasatune.errors import DataError
from kasatune.evaluation.task_model import TaskModel, deterministic
from kasatune.io.atomic import require_free
from kasatune.io.library_noise import quiet
from kasatune.models.device import find_device
from kasatune.models.load import load_base
from kasatune.models.moved_base import with_base
from kasatune.runs.directory import read_recipe
from kasatune.runs.metrics import read_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def shrink_adapter(
    directory: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int | None = None,
    energy: float | None = None,
    base: str | os.PathLike[str] | PreTrainedModel | None = None,
) -> Certificate:
    """Write a smaller stock LoRA adapter of a run or an adapter.

    W' - W, including the truncated tail, is reduced to its largest singular triplets in every layer. For a run, the
    smaller adapter is scored on the rows of metrics.json, for comparison with the scores of the run.

    Args:
        directory: a run, or an adapter in any format that `load_adapter` reads.
        out: a directory that does not exist or is empty; it is written completely or not at all.
        rank: the largest rank of a layer; or
        energy: the share of each layer's squared singular values to keep.
        base: name or folder of the base, or the unadapted base itself, which is not modified; by default the one of the
            recipe or the adapter, if it is on this machine.

    Returns:
        The certificate; for a run with "scores": {"split", "before", "after"}, or {"reason"} if its data is not
        available.

    Raises:
        InputError: there is no adapter, or neither or both of rank and energy are given.
        OutputError: `out` is not empty.
    """
    out = Path(out)
    rank_rule(rank, energy)  # before the base is loaded
    require_free(out)
    name = os.fspath(base) if isinstance(base, str | os.PathLike) else None
    source = find_source(Path(directory), name)
    require_convertible(source)
    if base is None or isinstance(base, str | os.PathLike):
        model = load_base_model(source) if name is not None or is_base_local(source) else None
    else:
        model = base
    with quiet():
        export_smaller_lora(source.adapter, out, rank=rank, energy=energy, base=model)
        copy_saved_tokenizer(source.adapter, source.run, out)
    certificate = read_certificate(out)
    if source.run is not None:
        certificate["scores"] = _scores(source, source.run, out)
        certificate = write_certificate(out, certificate)
    return certificate


def _scores(source: Source, run: Path, adapter: Path) -> dict[str, Any]:
    recipe, before = read_recipe(run), read_metrics(run)
    names = tuple(before["label_names"]) if before.get("label_names") else None
    with quiet(), deterministic():
        try:
            task = load_task(recipe.task)
        except DataError as fault:
            return {"reason": str(fault)}
        base = load_base(
            with_base(recipe, source.base).model,
            kind=before["kind"],
            label_names=names,
            seed=recipe.training.seed,
            max_length=recipe.task.max_length,
            float32_head=recipe.training.precision != "float32",
        )
        model = load_adapter(base.model, adapter).to(find_device(recipe.training))
        method = methods.load(recipe.method.name)
        prepared = TaskModel(recipe, base, method, model)
        split = str(before["split"])
        after = prepared.final_score(prepared.encode(task, split), task, split).metrics
    return {"split": split, "before": before["metrics"], "after": after}

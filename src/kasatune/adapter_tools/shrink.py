from __future__ import annotations

from pathlib import Path
from typing import Any

from kasatune import methods
from kasatune.adapter_tools.resolve import Source, find_source, is_at_hand, load_base_model
from kasatune.adapters.files import load_adapter, shrink_adapter
from kasatune.adapters.parity_report import CERTIFICATE
from kasatune.adapters.storage import read_json, write_json
from kasatune.data.tasks import load_task
from kasatune.errors import DataError
from kasatune.evaluation.task_model import TaskModel, deterministic
from kasatune.io.atomic import require_free
from kasatune.io.library_noise import quiet
from kasatune.models.device import find_device
from kasatune.models.load import load_base
from kasatune.runs.directory import read_metrics, read_recipe


def shrink(
    directory: Path, out: Path, *, rank: int | None = None, energy: float | None = None, base: str | None = None
) -> dict[str, Any]:
    """A smaller stock LoRA adapter of a run or an adapter, and what it costs.

    W' - W, the dropped tail included, is cut to its largest singular triplets in every layer. For a run, the scores of
    the smaller adapter on the rows that metrics.json tells of are measured, and stand beside the run's own.

    Args:
        directory: a run, or an adapter in any of the formats that `load_adapter` reads.
        out: a directory that does not exist or is empty.
        rank: the largest rank of a layer; or
        energy: the share of each layer's squared singular values to keep.
        base: the base's name or folder; the recipe's or the adapter's by default, where it is on this machine.

    Returns:
        The certificate, with "scores": {"split", "before", "after"} for a run whose data is to be had, or
        {"reason"} where it is not.

    Raises:
        InputError: no adapter, or neither or both of rank and energy.
        OutputError: `out` holds something.
    """
    require_free(out)
    source = find_source(directory, base)
    model = load_base_model(source) if base is not None or is_at_hand(source) else None
    with quiet():
        shrink_adapter(source.adapter, out, rank=rank, energy=energy, base=model)
    record = read_json(out, CERTIFICATE)
    if source.run is not None:
        record["scores"] = _scores(source, source.run, out)
        write_json(out / CERTIFICATE, record)
    return record


def _scores(source: Source, run: Path, adapter: Path) -> dict[str, Any]:
    recipe, before = read_recipe(run), read_metrics(run)
    names = tuple(before["label_names"]) if before.get("label_names") else None
    with quiet(), deterministic():
        try:
            task = load_task(recipe.task)
        except DataError as fault:
            return {"reason": str(fault)}
        base = load_base(
            recipe.model if source.base is None else recipe.model.model_copy(update={"name": source.base}),
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

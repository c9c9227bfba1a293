"""reference.json of a preference run: the log-probabilities of its answers under the model before training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import set_seed

from kasatune.data.tasks.dataset import TaskData
from kasatune.data.tokenize import Examples
from kasatune.data.tokenize_pairs import pairs_sha256, with_reference
from kasatune.errors import DataError
from kasatune.evaluation.preference import PairValues
from kasatune.evaluation.starting_adapter import prepare
from kasatune.evaluation.task_model import TaskModel
from kasatune.io.atomic import write_json
from kasatune.io.run_layout import REFERENCE
from kasatune.models.moved_base import with_base
from kasatune.recipes.schema import Recipe

_ROWS = "rows_sha256"
_TRAIN, _VALIDATION = "train", "validation"
_CHECKED = 16  # validation rows that are compared with reference.json
_TOLERANCE = 1e-3


def write_reference(run_dir: Path, examples: Mapping[str, Examples], values: Mapping[str, PairValues]) -> None:
    """Write reference.json.

    Args:
        run_dir: directory of the run.
        examples: tokenized pairs by split.
        values: log-probabilities of their answers by split.
    """
    content = {
        split: {_ROWS: pairs_sha256(rows), "chosen": values[split].chosen, "rejected": values[split].rejected}
        for split, rows in examples.items()
    }
    write_json(run_dir / REFERENCE, content, indent=None)


def read_reference(run_dir: Path, examples: Examples, split: str) -> PairValues | None:
    """The log-probabilities of `examples` in reference.json; None if the split has other rows there, or none.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = run_dir / REFERENCE
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        entry = content.get(split)
        if entry is None or entry[_ROWS] != pairs_sha256(examples):
            return None
        values = PairValues([float(value) for value in entry["chosen"]], [float(value) for value in entry["rejected"]])
        if {len(values.chosen), len(values.rejected)} != {len(examples)}:
            raise ValueError("another number of rows")
        return values
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise DataError(f"{path}: is missing or damaged ({fault}); copy the run again, or train again") from fault


def with_initial_reference(
    recipe: Recipe, data: TaskData, run_dir: Path, examples: Examples, base: str | None = None
) -> Examples:
    """`examples` with log-probabilities under the model before training, which is built again from the recipe.

    Args:
        recipe: of the run.
        data: the rows that the recipe names; methods may depend on the training rows.
        run_dir: directory of the run.
        examples: tokenized pairs that reference.json does not have.
        base: where the base model is now, if not where the recipe says.

    Raises:
        DataError: the model that was built differs from that of reference.json.
    """
    initial = TaskModel.for_training(with_base(recipe, base), data)
    set_seed(recipe.training.seed)
    prepare(initial, initial.batches(initial.encode(data, _TRAIN)))
    known = initial.encode(data, _VALIDATION)
    stored = read_reference(run_dir, known, _VALIDATION)
    checked = Examples(known.rows[:_CHECKED], frozenset())
    again = initial.log_probabilities(checked)
    if stored is None or not all(
        math.isclose(value, recorded, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
        for values, records in zip(again, stored, strict=True)
        for value, recorded in zip(values, records[:_CHECKED], strict=True)
    ):
        raise DataError(
            f"{run_dir / REFERENCE}: the model before training cannot be built again, so that other rows have no "
            "reference: base, rows or software differ; restore them, or train with the rows to score as task.validation"
        )
    return with_reference(examples, *initial.log_probabilities(examples))

"""reference.json of a preference run: the log-probabilities of its answers under the model before training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kasatune.data.tokenize import Examples
from kasatune.data.tokenize_pairs import pairs_sha256, with_reference
from kasatune.errors import DataError
from kasatune.evaluation.preference import PairValues
from kasatune.io.atomic import write_json
from kasatune.io.run_layout import REFERENCE

_ROWS = "rows_sha256"


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


def with_stored_reference(run_dir: Path, examples: Examples, split: str) -> Examples:
    """`examples` with the log-probabilities of reference.json.

    Raises:
        DataError: the file is missing or damaged, or was written for other rows.
    """
    path = run_dir / REFERENCE
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        entry = content.get(split)
        if entry is None or entry[_ROWS] != pairs_sha256(examples):
            raise DataError(
                f"{path}: holds the reference of other rows: rows can be scored that the run was trained or validated "
                "on; restore them, or train with the rows to score as task.validation"
            )
        return with_reference(examples, entry["chosen"], entry["rejected"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise DataError(f"{path}: is missing or damaged ({fault}); copy the run again, or train again") from fault

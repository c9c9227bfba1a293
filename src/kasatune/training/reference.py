"""The reference of a preference run (DPO): log-probabilities of the answers under the model before the first step.

They are computed once, with the method attached and prepared, so that the reference is the initial policy whatever the
method does to the base, and no second model or adapter is needed. A resumed run reads them from reference.json.
"""

from __future__ import annotations

import time

from kasatune.data.tokenize import Examples
from kasatune.data.tokenize_pairs import with_reference
from kasatune.distributed.process_group import is_main
from kasatune.errors import DataError
from kasatune.evaluation.stored_reference import read_reference, write_reference
from kasatune.io.run_layout import REFERENCE
from kasatune.training.run import Run


def add_reference(run: Run, *, resume: bool) -> None:
    """Add the log-probabilities under the reference to the examples of a run, and write them to its directory.

    Args:
        run: with its method prepared, before the trained weights of a checkpoint are loaded.
        resume: read them from the directory instead.

    Raises:
        DataError: a resumed run has lost its reference.json, or has other rows.
    """
    if resume:
        run.examples = {split: _restored(run, rows, split) for split, rows in run.examples.items()}
        return
    begin = time.perf_counter()
    values = {split: run.task_model.log_probabilities(rows) for split, rows in run.examples.items()}
    if is_main():
        write_reference(run.out, run.examples, values)
    run.examples = {split: with_reference(rows, *values[split]) for split, rows in run.examples.items()}
    run.seconds["reference"] = time.perf_counter() - begin


def _restored(run: Run, rows: Examples, split: str) -> Examples:
    values = read_reference(run.out, rows, split)
    if values is None:
        raise DataError(
            f"{run.out / REFERENCE}: was written for other tokens: tokenizer or chat template differ; restore them, or "
            "start again with --overwrite"
        )
    return with_reference(rows, *values)

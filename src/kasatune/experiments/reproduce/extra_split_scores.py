"""Score a run on further splits of its data, in RUN/scores/SPLIT.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kasatune.data.tasks import load_task
from kasatune.evaluation.scoring import predictions
from kasatune.evaluation.task_model import TaskModel, deterministic
from kasatune.io.atomic import write_json
from kasatune.io.library_noise import quiet
from kasatune.io.progress import ProgressReporter, progress_listener
from kasatune.io.run_layout import SCORES
from kasatune.runs.directory import read_recipe
from kasatune.runs.metrics import read_metrics
from kasatune.wording import counted


def split_file(run_dir: Path, split: str) -> Path:
    """The file with the scores of a split."""
    return run_dir / SCORES / f"{split}.json"


def score_splits(run_dir: Path, splits: Sequence[str], display: ProgressReporter) -> dict[str, str]:
    """Score a run on those of `splits` that have no scores yet.

    Returns:
        Why there is no score, for each split that the data lacks.

    Raises:
        InputError: the run's files, its base or its data are missing or unreadable.
    """
    wanted = [split for split in splits if not split_file(run_dir, split).is_file()]
    if not wanted:
        return {}
    recipe, before = read_recipe(run_dir), read_metrics(run_dir)
    names = tuple(before["label_names"]) if before.get("label_names") else None
    with quiet(display.message), deterministic(), progress_listener(display.progress):
        data = load_task(recipe.task)
        lacks = {split: f"{data.source} has no such rows" for split in wanted if split not in data.splits}
        if len(lacks) == len(wanted):
            return lacks
        task_model = TaskModel.for_saved_run(recipe, names, run_dir)
        (run_dir / SCORES).mkdir(exist_ok=True)
        for split in wanted:
            if split not in lacks:
                display.message(f"scoring {split}: {counted(len(data.splits[split]), 'row')}")
                scores = task_model.final_score(task_model.encode(data, split), data, split)
                content = {"metrics": scores.metrics, **predictions(split, scores)}
                write_json(split_file(run_dir, split), content, indent=None)
    return lacks

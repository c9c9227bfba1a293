"""`kasatune demo --language-model`: losses, scores and answers of a small language model before and after training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kasatune.cli.console import note, print_table, say
from kasatune.cli.fast_import import large_libraries
from kasatune.io.run_layout import PREDICTIONS, REPORT
from kasatune.wording import counted

if TYPE_CHECKING:
    from kasatune.recipes.schema import Recipe

RECIPE = "demo-lm"
_ANSWERS = 4


def base_answers(recipe: Recipe) -> tuple[dict[str, float], list[str]]:
    """Scores and generated texts of the untouched base model on the recipe's validation rows."""
    with large_libraries():
        from kasatune.data.tasks import load_task
        from kasatune.evaluation.task_model import TaskModel
        from kasatune.io.library_noise import quiet
        from kasatune.training.run import SPLIT

    note("the base model answers the validation rows")
    with quiet():
        data = load_task(recipe.task)
        base = TaskModel.for_base(recipe, None)
        scores = base.final_score(base.encode(data, SPLIT), data, SPLIT)
    return scores.metrics, scores.predictions


def show(out: Path, base_scores: dict[str, float], base_texts: list[str]) -> None:
    """Print the table of losses and scores, and the first answers of both models."""
    from kasatune.reports import formatting as words
    from kasatune.runs.metrics import read_metrics

    metrics = read_metrics(out)
    start, end, scores = metrics["start"]["base"], metrics["end"], metrics["metrics"]
    rows: list[tuple[str, Any, Any]] = [
        ("loss of an answer token", start["loss"], end["loss"]),
        ("loss on unrelated text (forgetting)", start["unrelated_loss"], end["unrelated_loss"]),
        *((words.metric_title(name, metrics), base_scores.get(name), scores[name]) for name in ("rouge_l", "bleu")),
    ]
    cells = [[name, words.score(before), words.score(after)] for name, before, after in rows]
    print_table([f"{metrics['task']}, held-out rows", "base", "tuned"], cells, numbers=2)
    predictions = json.loads((out / PREDICTIONS).read_text(encoding="utf-8"))
    answers = zip(predictions["inputs"], base_texts, predictions["predictions"], predictions["labels"], strict=True)
    for question, before, after, references in list(answers)[:_ANSWERS]:
        say(f"\n{question.strip().splitlines()[-1]}")
        for who, text in (("base", before), ("tuned", after), ("written by its authors", references[0])):
            say(f"  {who}: {' '.join(text.split())}")
    say(f"\n{counted(metrics['trainable_parameters'], 'trained parameter')}")
    say(f"run directory: {out}")
    say(f"report: {out / REPORT}")
    say(f"next: kasatune chat {out} --beside")

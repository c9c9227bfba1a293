"""After a run: write report.html and the model cards, and print the scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kasatune.cli.console import print_table, say
from kasatune.io.run_layout import CARD, REPORT

PAGES = (REPORT, CARD)


def write_pages(run_dir: Path) -> None:
    """Write report.html and the model cards of a finished run."""
    from kasatune.reports.card import write_card
    from kasatune.reports.run_page import write_report

    write_report(run_dir)
    write_card(run_dir)


def show_run(run_dir: Path) -> None:
    """Print the scores of a finished run, its numbers of trained parameters, and the path of its report."""
    from kasatune.reports import formatting as words
    from kasatune.runs.metrics import read_metrics

    metrics = read_metrics(run_dir)
    show_scores(metrics)
    trained, head = words.count(metrics["trainable_parameters"]), words.count(metrics["head_parameters"])
    say(f"\ntrained parameters: {trained}, and {head} of the head")
    say(f"report: {run_dir / REPORT}")


def show_scores(metrics: Mapping[str, Any]) -> None:
    """Print the scores in the content of metrics.json: those of the selected state and of the last one."""
    from kasatune.reports import formatting as words

    last = (metrics.get("last") or {}).get("metrics") or {}
    head = [f"{metrics['task']}, {metrics['split']}", "selected", *(["last epoch"] if last else [])]
    rows = [
        [words.metric_title(name, metrics), words.score(value), *([words.score(last.get(name))] if last else [])]
        for name, value in metrics["metrics"].items()
    ]
    print_table(head, rows, numbers=len(head) - 1)

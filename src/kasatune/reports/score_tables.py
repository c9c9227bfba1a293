"""Tables of scores and costs of runs, as text cells for the terminal and for Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kasatune.reports import formatting, markdown


class Cells(NamedTuple):
    """A table as text: column names, and rows of as many cells."""

    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Compared:
    """One row of a table of methods: the scores and costs of a method's runs.

    Attributes:
        method: title of the method.
        scores: the values of each score, one per run, in the order of the runs.
        trainable_parameters: number of trained parameters.
        seconds: mean duration of a run.
        peak_memory_bytes: largest peak memory of any run.
    """

    method: str
    scores: Mapping[str, Sequence[float]]
    trainable_parameters: int | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None

    @property
    def runs(self) -> int:
        """Number of runs."""
        return max((len(values) for values in self.scores.values()), default=0)


def gather(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Compared]:
    """One entry per method, in the order in which the methods first appear.

    Args:
        runs: (title of the method, content of metrics.json) of every run.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for method, metrics in runs:
        groups.setdefault(method, []).append(metrics)
    lines = []
    for method, group in groups.items():
        names = list(dict.fromkeys(name for metrics in group for name in metrics["metrics"]))
        times = [sum(metrics["seconds"].values()) for metrics in group if metrics.get("seconds")]
        peaks = [metrics["peak_memory_bytes"] for metrics in group if metrics.get("peak_memory_bytes") is not None]
        lines.append(
            Compared(
                method=method,
                scores={name: [m["metrics"][name] for m in group if name in m["metrics"]] for name in names},
                trainable_parameters=group[0].get("trainable_parameters"),
                seconds=statistics.fmean(times) if times else None,
                peak_memory_bytes=max(peaks, default=None),
            )
        )
    return lines


def spread(values: Sequence[float]) -> str:
    """Mean, with the sample standard deviation if there are several values; "-" for none."""
    if not values:
        return formatting.ABSENT
    if len(values) == 1:
        return formatting.score(values[0])
    return f"{formatting.score(statistics.fmean(values))} \u00b1 {statistics.stdev(values):.4f}"


def scores(metrics: Mapping[str, Any]) -> Cells:
    """The scores of one run: the selected state and, if recorded, the last epoch."""
    last = (metrics.get("last") or {}).get("metrics") or {}
    head = [f"{metrics['task']}, {metrics['split']}", "selected", *(["last epoch"] if last else [])]
    rows = [
        [
            formatting.metric_title(name, metrics),
            formatting.score(value),
            *([formatting.score(last.get(name))] if last else []),
        ]
        for name, value in metrics["metrics"].items()
    ]
    return Cells(head, rows)


def comparison(lines: Sequence[Compared]) -> Cells:
    """One row per method: scores over the runs, and costs of a run."""
    names = list(dict.fromkeys(name for line in lines for name in line.scores))
    titles = [formatting.metric_title(name) for name in names]
    rows = [
        [
            line.method,
            str(line.runs),
            *(spread(line.scores.get(name, ())) for name in names),
            formatting.count(line.trainable_parameters),
            formatting.duration(line.seconds),
            formatting.size(line.peak_memory_bytes),
        ]
        for line in lines
    ]
    return Cells(["method", "runs", *titles, "trained parameters", "time", "peak memory"], rows)


def as_markdown(cells: Cells) -> str:
    """The table as Markdown, with names in the first column and numbers in the others."""
    head, *rows = [[markdown.text(cell) for cell in row] for row in (cells.head, *cells.rows)]
    return markdown.table(head, rows, numbers=len(head) - 1)

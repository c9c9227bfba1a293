"""Tables for the terminal (rich) and for Markdown, from plain data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kasatune.reports import markdown, words

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Compared:
    """One line of a comparison: a method and what its runs scored.

    Attributes:
        method: the method's name in the field.
        scores: values of each score, one a run, in the same order of runs for every score.
        trainable_parameters: how many parameters a run trains.
        seconds: mean time of a run.
        peak_memory_bytes: largest peak memory of a run.
    """

    method: str
    scores: Mapping[str, Sequence[float]]
    trainable_parameters: int | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None

    @property
    def runs(self) -> int:
        """How many runs the line stands for."""
        return max((len(values) for values in self.scores.values()), default=0)


def gather(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Compared]:
    """One line a method, in the order in which the methods first appear.

    Args:
        runs: (method's name in the field, metrics.json) of every run.
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
    """Mean, and with several values plus or minus the sample standard deviation; "-" for none."""
    if not values:
        return words.ABSENT
    if len(values) == 1:
        return words.score(values[0])
    return f"{words.score(statistics.fmean(values))} \u00b1 {statistics.stdev(values):.4f}"


def scores_table(metrics: Mapping[str, Any], title: str = "") -> Table:
    """The scores of one metrics.json for the terminal, the last epoch beside the selected one."""
    head, rows = _scores(metrics)
    return _rich(head, rows, title, numbers=len(head) - 1)


def scores_markdown(metrics: Mapping[str, Any]) -> str:
    """The scores of one metrics.json as a Markdown table."""
    head, rows = _scores(metrics)
    return _markdown(head, rows)


def comparison_table(lines: Sequence[Compared], title: str = "") -> Table:
    """A comparison of methods for the terminal."""
    head, rows = _comparison(lines)
    return _rich(head, rows, title, numbers=len(head) - 1)


def comparison_markdown(lines: Sequence[Compared]) -> str:
    """A comparison of methods as a Markdown table."""
    head, rows = _comparison(lines)
    return _markdown(head, rows)


def _scores(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    last = (metrics.get("last") or {}).get("metrics")
    head = [f"score on {metrics.get('split', 'validation')}", "selected", *(["last epoch"] if last else [])]
    rows = [
        [words.metric_title(name), words.score(value), *([words.score(last.get(name))] if last else [])]
        for name, value in metrics["metrics"].items()
    ]
    return head, rows


def _comparison(lines: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for line in lines for name in line.scores))
    head = [
        "method",
        "runs",
        *(words.metric_title(name) for name in names),
        "trained",
        "time",
        "peak memory",
    ]
    rows = [
        [
            line.method,
            str(line.runs),
            *(spread(line.scores.get(name, ())) for name in names),
            words.count(line.trainable_parameters),
            words.duration(line.seconds),
            words.size(line.peak_memory_bytes),
        ]
        for line in lines
    ]
    return head, rows


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[markdown.text(cell) for cell in row] for row in (head, *rows)]
    return markdown.table(cells[0], cells[1:], numbers=len(head) - 1)


def _rich(head: Sequence[str], rows: Sequence[Sequence[str]], title: str, *, numbers: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, box=box.SIMPLE_HEAD, title_justify="left")
    for place, name in enumerate(head):
        table.add_column(Text(name), justify="right" if place >= len(head) - numbers else "left", no_wrap=place > 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table

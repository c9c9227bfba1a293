"""Rows of text in a run report: loss by token position, rows that were cut."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kasatune.reports import formatting
from kasatune.reports.run_record import RunRecord
from kasatune.reports.svg_charts import Chart, Line
from kasatune.wording import agree, counted

_STATES = (("base", "untouched base", "s2"), ("start", "before the first step", "s3"), ("end", "after training", "s1"))


def position_chart(run: RunRecord) -> Chart | None:
    """The loss by the position of a token in its answer, of the base and of the tuned model; None if not measured."""
    start = run.metrics.get("start") or {}
    states = {"base": start.get("base"), "start": start.get("start"), "end": run.metrics.get("end")}
    measured = {name: _ranges(state) for name, state in states.items() if _ranges(state)}
    if measured.get("start") == measured.get("base"):
        measured.pop("start", None)
    lines = [
        Line(label, *_points(measured[name]), style=style, dots=True)
        for name, label, style in _STATES
        if name in measured
    ]
    if not lines:
        return None
    last = next(iter(measured.values()))[-1]
    described = [f"{line.label}: {line.y[0]:.3g} at the first token, {line.y[-1]:.3g} at the last" for line in lines]
    return Chart(
        title="Loss by token position",
        description="; ".join(described) + ".",
        lines=lines,
        x_label="token of the answer, from 1",
        log_x=True,
        whole_x=True,
        y_bounds=(0.0, math.inf),
        note=(
            f"Mean over {counted(start.get('rows', 0), 'row')} of {run.split}: the 1st and 2nd token of the answer, "
            f"then ranges that double. The last point has {counted(last['tokens'], 'token')}."
        ),
    )


def _ranges(state: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    return (state or {}).get("by_position") or []


def _points(ranges: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """The geometric middle of each range of positions, and its loss."""
    return [math.sqrt(entry["first"] * entry["last"]) for entry in ranges], [entry["loss"] for entry in ranges]


def cut_facts(run: RunRecord) -> list[tuple[str, str]]:
    """(name, value) for each split: how many of its rows were cut to `task.max_length`; empty if not recorded."""
    return [
        (f"{_rows_of(split)} cut at {_limit(run)}", f"{_of(counts)} ({formatting.share(_share(counts))})")
        for split, counts in (run.metrics.get("rows_cut") or {}).items()
    ]


def cut_sentence(run: RunRecord) -> str:
    """The share of rows that were cut, and how many lost the end of their answer; "" if none was cut."""
    parts = []
    for split, counts in (run.metrics.get("rows_cut") or {}).items():
        if counts["cut"]:
            endless = counts.get("without_end") or 0
            lost = f", of which {endless} lost the end of {agree(endless, 'its', 'their')} answer" if endless else ""
            parts.append(f"{formatting.share(_share(counts))} of the {_rows_of(split)} ({_of(counts)}{lost})")
    return f"Cut at {_limit(run)} (task.max_length): {'; '.join(parts)}." if parts else ""


def _rows_of(split: str) -> str:
    return "training rows" if split == "train" else split + " rows"


def _limit(run: RunRecord) -> str:
    limit = run.recipe.get("task", {}).get("max_length")
    return "the longest length" if limit is None else counted(limit, "token")


def _share(counts: Mapping[str, int]) -> float:
    return counts["cut"] / counts["rows"] if counts["rows"] else 0.0


def _of(counts: Mapping[str, int]) -> str:
    return f"{formatting.count(counts['cut'])} of {formatting.count(counts['rows'])}"

"""Routing of a mixture of experts in a report: load of the experts and entropy over training, and by task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from kasatune.reports.run_record import RunRecord
from kasatune.reports.svg_charts import Chart, Line
from kasatune.wording import counted


@dataclass(frozen=True)
class RouterRow:
    """The choices of a router.

    Attributes:
        name: the layer or block of the router.
        first: the share of each expert before the first evaluation of training.
        load: the same before the last evaluation.
        entropy: of the probabilities, divided by log N, before the last evaluation.
        parts: for a mixture of tasks, the share of each expert on the rows of each part, at the last evaluation.
    """

    name: str
    first: tuple[float, ...]
    load: tuple[float, ...]
    entropy: float
    parts: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class PartRow:
    """How the routers treat one part of a mixture of tasks, at the last evaluation.

    Attributes:
        name: of the part.
        busiest: the load of the busiest expert, median over the routers.
        entropy: of the probabilities, divided by log N, median over the routers.
        distance: total variation (1/2) sum_i |f_i - g_i| between its loads f and the mean loads g of the other parts,
            mean over the routers: 0 if it is routed like them, 1 if it shares no expert with them.
    """

    name: str
    busiest: float
    entropy: float
    distance: float


def routing_charts(run: RunRecord) -> list[Chart]:
    """Largest load and entropy over the epochs, median and range over the routers; [] with fewer than two states."""
    events = run.events("routing")
    if len(events) < 2:
        return []
    number = counted(len(events[-1]["routers"]), "router")
    return [
        _chart(events, "Load of the busiest expert", "the share of the choices that fall on it", _busiest, number),
        _chart(events, "Entropy of the routers", "as a share of log N, the largest possible", _entropy, number),
    ]


def routing_table(run: RunRecord) -> list[RouterRow]:
    """The routers of the last event, in its order; [] for a method without routers."""
    events = run.events("routing")
    if not events:
        return []
    first, last = events[0]["routers"], events[-1]
    parts = last.get("parts", {}).values()
    return [
        RouterRow(
            name,
            tuple(first.get(name, entry)["load"]),
            tuple(entry["load"]),
            _entropy(entry),
            tuple(tuple(part[name]["load"]) for part in parts if name in part),
        )
        for name, entry in last["routers"].items()
    ]


def routing_by_part(run: RunRecord) -> list[PartRow]:
    """Each part of a mixture of tasks at the last evaluation; [] for another task, or a method without routers."""
    events = run.events("routing")
    parts = events[-1].get("parts", {}) if events else {}
    rows: list[PartRow] = []
    for name, routers in parts.items():
        others = [other for part, other in parts.items() if part != name]
        distances = [
            _distance(entry["load"], [other[router]["load"] for other in others]) for router, entry in routers.items()
        ]
        busiest, entropy = (median(map(value, routers.values())) for value in (_busiest, _entropy))
        rows.append(PartRow(name, busiest, entropy, fmean(distances)))
    return rows


def _distance(load: Sequence[float], others: Sequence[Sequence[float]]) -> float:
    return sum(abs(own - fmean(rest)) for own, *rest in zip(load, *others, strict=True)) / 2


def _busiest(router: Mapping[str, Any]) -> float:
    return max(router["load"])


def _entropy(router: Mapping[str, Any]) -> float:
    return float(router["entropy"]) / math.log(len(router["load"])) if len(router["load"]) > 1 else 0.0


def _chart(
    events: Sequence[Mapping[str, Any]],
    title: str,
    note: str,
    value: Callable[[Mapping[str, Any]], float],
    number: str,
) -> Chart:
    epochs = [float(event["epoch"]) for event in events]
    values = [[value(router) for router in event["routers"].values()] for event in events]
    middle = [median(column) for column in values]
    return Chart(
        title=title,
        description=(
            f"{title} over {number}: median {middle[0]:.3g} at first, {middle[-1]:.3g} at the end; range at the end "
            f"{min(values[-1]):.3g} to {max(values[-1]):.3g}."
        ),
        lines=[
            Line("median router", epochs, middle, "s1", dots=True),
            Line("largest and smallest", epochs, [max(column) for column in values], "fine"),
            Line("largest and smallest", epochs, [min(column) for column in values], "fine"),
        ],
        x_label="epoch",
        whole_x=True,
        y_bounds=(0.0, 1.0),
        note=f"{note[0].upper()}{note[1:]}, over {number}.",
    )

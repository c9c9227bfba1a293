"""Charts and table of the routers of a mixture of experts: load of the experts and entropy over training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from kasatune.reports.run_record import RunRecord
from kasatune.reports.svg_charts import Chart, Line
from kasatune.wording import counted


@dataclass(frozen=True)
class RouterRow:
    """The last known choices of a router.

    Attributes:
        name: the layer or block of the router.
        load: the share of each expert.
        entropy: of the probabilities, divided by log N.
    """

    name: str
    load: tuple[float, ...]
    entropy: float


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
    routers = events[-1]["routers"] if events else {}
    return [RouterRow(name, tuple(entry["load"]), _entropy(entry)) for name, entry in routers.items()]


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

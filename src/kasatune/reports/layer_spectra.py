"""Charts of the adapted layers of a KaSA run: singular values with the dropped part, and sigma during training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kasatune.reports.run_record import RunRecord
from kasatune.reports.svg_charts import Band, Chart, Line, Region
from kasatune.wording import counted

WIDTH, HEIGHT = 250, 150  # of the small charts per layer
MANY_COMPONENTS = 16  # more lines are indistinguishable in a small chart: quantiles are drawn instead
MANY_STATES = 24  # more points are indistinguishable in a small chart
EXACT_POSITIONS = 32  # smallest singular values drawn individually; the others at geometric distances


@dataclass(frozen=True)
class Layer:
    """Numbers and charts of one adapted layer.

    Attributes:
        name: its name in the model.
        shape: (out, in) of its weight.
        rank: r.
        dropped: number of dropped singular triplets.
        energy: dropped share of sum(S^2).
        largest_dropped: the largest dropped singular value; None if none was dropped.
        smallest_kept: the smallest kept singular value; None if none was kept.
        sigma_start, sigma_end: Frobenius norm of sigma before and after training; None if unknown.
        spectrum: chart of all singular values, with the dropped part shaded.
        sigma: chart of sigma over the epochs; None with fewer than two known states.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    dropped: int
    energy: float
    largest_dropped: float | None
    smallest_kept: float | None
    sigma_start: float | None
    sigma_end: float
    spectrum: Chart
    sigma: Chart | None


def layers(run: RunRecord) -> list[Layer]:
    """Every adapted layer of the run, in the order of spectrum.json."""
    what = "singular values of the dense core" if run.recipe.get("method", {}).get("core") == "dense" else "sigma"
    states = _states(run)
    return [_layer(entry, states, what) for entry in run.spectrum]


def _states(run: RunRecord) -> list[tuple[float, Mapping[str, Sequence[float]]]]:
    """(epoch, sigma by layer) from the start to the end of training, as far as known."""
    states = [(float(event["epoch"]), event["layers"]) for event in run.events("sigma")]
    start = {entry["name"]: entry["sigma_initial"] for entry in run.spectrum if entry["sigma_initial"]}
    if start and not (states and states[0][0] == 0):
        states.insert(0, (0.0, start))
    return [(epoch, values) for epoch, values in states if values]


def sigma_summary(run: RunRecord) -> Chart | None:
    """||sigma||_F over the epochs: median, 10th to 90th percentile and range over the layers.

    None if fewer than two states of sigma are known.
    """
    states = _states(run)
    if len(states) < 2:
        return None
    epochs = [epoch for epoch, _ in states]
    norms = [[_norm(sigma) for sigma in values.values()] for _, values in states]
    low, ten, median, ninety, high = (
        [float(v) for v in column]
        for column in zip(*(np.quantile(n, [0, 0.1, 0.5, 0.9, 1]) for n in norms), strict=True)
    )
    return Chart(
        title="Norm of sigma",
        description=(
            f"The norm of sigma over {counted(len(norms[0]), 'layer')}: median {median[0]:.3g} before training, "
            f"{median[-1]:.3g} at the end; range at the end {low[-1]:.3g} to {high[-1]:.3g}."
        ),
        lines=[
            Line("median layer", epochs, median, "s1", dots=True),
            Line("largest and smallest layer", epochs, high, "fine"),
            Line("largest and smallest layer", epochs, low, "fine"),
        ],
        bands=[Band("middle 80 % of the layers", epochs, ten, ninety)],
        x_label="epoch",
        whole_x=True,
        y_bounds=(0.0, math.inf),
        note=f"Frobenius norm of sigma over {counted(len(norms[0]), 'layer')}.",
    )


def _layer(entry: Mapping[str, Any], states: Sequence[tuple[float, Mapping[str, Sequence[float]]]], what: str) -> Layer:
    values = np.asarray(entry["singular_values"], dtype=float)
    first, dropped = (int(n) for n in entry["dropped"])
    truncated = values[first : first + dropped]
    retained = np.delete(values, slice(first, first + dropped))
    total = float(np.sum(values**2))
    energy = float(np.sum(truncated**2)) / total if total else 0.0
    name = str(entry["name"])
    return Layer(
        name=name,
        shape=(int(entry["shape"][0]), int(entry["shape"][1])),
        rank=int(entry["rank"]),
        dropped=dropped,
        energy=energy,
        largest_dropped=float(truncated[0]) if dropped else None,
        smallest_kept=float(retained[-1]) if len(retained) else None,
        sigma_start=_norm(entry["sigma_initial"]) if entry["sigma_initial"] else None,
        sigma_end=_norm(entry["sigma"]),
        spectrum=_spectrum_chart(name, values, first, dropped),
        sigma=_sigma_chart(name, [(epoch, values[name]) for epoch, values in states if name in values], what),
    )


def _norm(sigma: Sequence[float]) -> float:
    return float(np.linalg.norm(np.asarray(sigma, dtype=float)))


def _positions(k: int) -> list[int]:
    exact = list(range(1, min(k, EXACT_POSITIONS) + 1))
    if k <= EXACT_POSITIONS:
        return exact
    far = np.unique(np.geomspace(EXACT_POSITIONS, k, 32).round().astype(int))
    return exact + [int(p) for p in far if p > EXACT_POSITIONS]


def _spectrum_chart(name: str, values: np.ndarray, first: int, dropped: int) -> Chart:
    """Singular values by position from the smallest, on a logarithmic axis that makes the few dropped ones visible."""
    k = len(values)
    positions = _positions(k)
    floor = float(values.max(initial=0.0)) * 1e-8
    heights = [float(values[k - p]) if values[k - p] > floor else math.nan for p in positions]
    regions = []
    # A position p, from 1 for the smallest, is dropped when values[k - p] is: k - first is the last dropped position.
    if dropped:
        last, start = k - first, max(1, k - first - dropped + 1)
        regions = [Region(f"dropped: {dropped} of {k}", start, min(k, last + 0.5))]
        summary = f"the {dropped} smallest of {k} are dropped"
    else:
        summary = f"none of {k} is dropped"
    return Chart(
        title=name,
        description=f"Singular values from {values[0]:.3g} down to {values[-1]:.3g}; {summary}.",
        lines=[Line("singular values", positions, heights, "s1")],
        regions=regions,
        x_label="position, 1 is the smallest",
        log_x=True,
        log_y=True,
        reverse_x=True,
        legend=False,
        width=WIDTH,
        height=HEIGHT,
    )


def _sigma_chart(name: str, states: Sequence[tuple[float, Sequence[float]]], what: str) -> Chart | None:
    if len(states) < 2:
        return None
    if len(states) > MANY_STATES:
        shown = np.unique(np.linspace(0, len(states) - 1, MANY_STATES).round().astype(int))
        states = [states[place] for place in shown]
    epochs = [epoch for epoch, _ in states]
    table = np.asarray([sigma for _, sigma in states], dtype=float)
    if table.shape[1] > MANY_COMPONENTS:
        table = np.quantile(table, [0, 0.25, 0.5, 0.75, 1], axis=1).T
        what = f"{what}: range, quartiles and median"
    return Chart(
        title=name,
        description=f"{what}: from {table[0].min():.3g} to {table[0].max():.3g} before training, "
        f"{table[-1].min():.3g} to {table[-1].max():.3g} at the end.",
        lines=[Line("", epochs, [float(v) for v in column], "fine") for column in table.T],
        x_label="epoch",
        whole_x=True,
        note=what,
        legend=False,
        width=WIDTH,
        height=HEIGHT,
    )

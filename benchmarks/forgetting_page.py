"""The page of the registered comparison of forgetting: chooses the points, tests the endpoint, writes the tables.

python -m benchmarks.forgetting_page RUNS.jsonl [--choose]

RUNS.jsonl was written by `python -m benchmarks.forgetting`; rules, seeds and endpoint are those of
docs/registrations/forgetting-smollm2.md. --choose prints the points to confirm; otherwise
docs/results/forgetting-smollm2.md and the picture docs/assets/forgetting-smollm2.svg are written.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from benchmarks.forgetting import ARMS, METHOD_ARMS
from kasatune.metrics.small_sample import detectable_effect
from kasatune.reports.chart_axis import Scale

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "results" / "forgetting-smollm2.md"
PICTURE = DOCS / "assets" / "forgetting-smollm2.svg"
SEARCH_SEEDS, CONFIRM_SEEDS = range(3), range(100, 110)
MATCHED = 0.01  # nats above the best E2E loss of LoRA
LEAST_EFFECT = 0.01
E2E_MARGIN = 0.03
LORA = (
    *(("lora", rate) for rate in (0.001, 0.002, 0.004)),
    ("lora-alpha-8", 0.004),
    ("lora-alpha-32", 0.002),
    *(("lora-mlp", rate) for rate in (0.002, 0.004, 0.008)),
)
AKASA = (
    *(("akasa-0.02", rate) for rate in (0.001, 0.002, 0.004, 0.008)),
    ("akasa-0.005", 0.004),
    ("akasa-0.1", 0.004),
    ("akasa-0.5", 0.004),
    ("akasa-0.02-mlp", 0.004),
)
KASA = ("kasa", 0.004)

Point = tuple[str, float]


class Interval(NamedTuple):
    """A mean of paired differences with its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, differences: Sequence[float]) -> Interval:
        """By Student's t over the seeds."""
        mean = statistics.fmean(differences)
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
        return cls(mean, mean - half, mean + half)

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


class Runs:
    """The runs of a file, by confirmation or search, point and seed."""

    def __init__(self, records: Iterable[dict[str, Any]]) -> None:
        self._runs = {(bool(r["confirm"]), r["arm"], r["rate"], r["seed"]): r for r in records if r["steps"] == 40}

    def ends(self, point: Point, kind: str, *, confirm: bool) -> list[float]:
        """The losses after training, by seed.

        Raises:
            SystemExit: runs are missing; they are named.
        """
        seeds = CONFIRM_SEEDS if confirm else SEARCH_SEEDS
        missing = [seed for seed in seeds if (confirm, *point, seed) not in self._runs]
        if missing:
            raise SystemExit(f"{point[0]}@{point[1]}: seeds {missing} are missing; run python -m benchmarks.forgetting")
        return [self._runs[confirm, *point, seed]["end"][kind] for seed in seeds]

    def mean(self, point: Point, kind: str, *, confirm: bool = False) -> float:
        """The mean loss after training over the seeds."""
        return statistics.fmean(self.ends(point, kind, confirm=confirm))

    def base(self, *, confirm: bool) -> dict[str, float]:
        """The losses of the untouched base."""
        return next(run["base"] for key, run in self._runs.items() if key[0] is confirm)

    def is_confirmed(self, point: Point) -> bool:
        """Whether a point has been run with every seed of the confirmation."""
        return all((True, *point, seed) in self._runs for seed in CONFIRM_SEEDS)

    def other_points(self) -> list[Point]:
        """Points of the search rows outside the registered search, in the order of the arms."""
        order = [*ARMS, *METHOD_ARMS]
        points = {(arm, rate) for confirm, arm, rate, _ in self._runs if not confirm} - {*LORA, *AKASA}
        return sorted(points, key=lambda point: (order.index(point[0]), point[1]))

    def arms(self) -> set[str]:
        """Every arm with at least one run."""
        return {arm for _, arm, _, _ in self._runs}

    def searched(self, point: Point) -> list[dict[str, Any]]:
        """The runs of a point on the search rows."""
        return [run for key, run in self._runs.items() if key[:3] == (False, *point)]

    def machine(self) -> str:
        """The machine of the first run."""
        return ", ".join(f"{name} {value}" for name, value in next(iter(self._runs.values()))["machine"].items())


def choose(runs: Runs, points: Sequence[Point]) -> Point:
    """The registered choice on one side."""
    best = min(runs.mean(point, "e2e") for point in LORA)
    matched = [point for point in points if runs.mean(point, "e2e") <= best + MATCHED]
    if not matched:
        return min(points, key=lambda point: runs.mean(point, "e2e"))
    return min(matched, key=lambda point: runs.mean(point, "unrelated"))


def page(runs: Runs) -> str:
    """The Markdown page."""
    lora, akasa = choose(runs, LORA), choose(runs, AKASA)

    def difference(point: Point, kind: str) -> Interval:
        pairs = zip(runs.ends(point, kind, confirm=True), runs.ends(lora, kind, confirm=True), strict=True)
        return Interval.of([ours - theirs for ours, theirs in pairs])

    unrelated, e2e = difference(akasa, "unrelated"), difference(akasa, "e2e")
    won = unrelated.high < 0 and unrelated.mean <= -LEAST_EFFECT and e2e.high < E2E_MARGIN
    base = runs.base(confirm=True)
    lines = [
        "# What akasa and LoRA forget while SmolLM2 learns E2E",
        "",
        f"**{'akasa wins' if won else 'No win'}: its loss differs from LoRA's by {unrelated} nats on unrelated text "
        f"and by {e2e} on the task** (mean and 95 % interval of the paired difference, ten seeds). Registered in "
        "[docs/registrations](../registrations/forgetting-smollm2.md) before the runs; made by "
        f"`python -m benchmarks.forgetting` and `python -m benchmarks.forgetting_page`. {runs.machine()}.",
        "",
        "## Confirmation",
        "",
        "| method | rate | E2E | unrelated | E2E, difference to LoRA | unrelated, difference to LoRA |",
        "|---|---|---|---|---|---|",
        f"| untouched base | | {base['e2e']:.4f} | {base['unrelated']:.4f} | | |",
    ]
    secondary = [KASA] if runs.is_confirmed(KASA) else []
    for point in (lora, akasa, *secondary):
        means = " | ".join(f"{runs.mean(point, kind, confirm=True):.4f}" for kind in ("e2e", "unrelated"))
        against = " | " if point == lora else f"{difference(point, 'e2e')} | {difference(point, 'unrelated')}"
        lines.append(f"| {point[0]} | {point[1]} | {means} | {against} |")
    if not secondary:
        lines += ["", f"The secondary comparison, {KASA[0]} at {KASA[1]}, has not been run with all seeds."]
    base = runs.base(confirm=False)
    lines += [
        "",
        "## Search",
        "",
        f"Means over three seeds, on other rows; the untouched base has {base['e2e']:.4f} and {base['unrelated']:.4f}.",
        "",
        "| method | rate | E2E | unrelated | chosen |",
        "|---|---|---|---|---|",
        *(
            f"| {point[0]} | {point[1]} | {runs.mean(point, 'e2e'):.4f} | {runs.mean(point, 'unrelated'):.4f} | "
            f"{'yes' if point in (lora, akasa) else ''} |"
            for point in (*LORA, *AKASA)
        ),
        "",
        f"A point qualifies with at most {MATCHED} nats more on E2E than LoRA's best. " + nearest(runs, lora),
    ]
    lines += ["", *others(runs), "", *power(runs, lora, akasa)]
    return "\n".join(lines) + "\n"


def nearest(runs: Runs, lora: Point) -> str:
    """The point of LoRA that forgets less than the chosen one and missed the limit on E2E by the least."""
    missed = [point for point in LORA if runs.mean(point, "unrelated") < runs.mean(lora, "unrelated")]
    best = min(missed, key=lambda point: runs.mean(point, "e2e"), default=None)
    if best is None:
        return "No other point of LoRA forgets less."
    over = runs.mean(best, "e2e") - min(runs.mean(point, "e2e") for point in LORA) - MATCHED
    return (
        f"The next point of LoRA that forgets less than the chosen one, {best[0]} at {best[1]}, missed that by "
        f"{over:.4f} nats; its loss on unrelated text is {runs.mean(best, 'unrelated'):.4f}."
    )


def others(runs: Runs) -> list[str]:
    """The table of what was tried outside the registered search, and the arms that were not run."""
    lines = [
        "## Tried without registration",
        "",
        "On the search rows, from which nothing is concluded: few seeds, one or two rates. `start` is measured after "
        "attaching; where it is empty the start is the untouched base.",
        "",
        "| method | rate | seeds | start: E2E, unrelated | E2E | unrelated |",
        "|---|---|---|---|---|---|",
    ]
    others = runs.other_points()
    if not others:
        lines = ["## Not run"]
    for point in others:
        held = runs.searched(point)
        start = held[0]["start"]
        cells = (
            f"{start['e2e']:.3f}, {start['unrelated']:.3f}" if start else "",
            *(f"{statistics.fmean(run['end'][kind] for run in held):.4f}" for kind in ("e2e", "unrelated")),
        )
        lines.append(f"| {point[0]} | {point[1]} | {len(held)} | {' | '.join(cells)} |")
    base = runs.base(confirm=False)["e2e"]
    diverged = [f"{arm} at {rate}" for arm, rate in others if runs.searched((arm, rate))[0]["end"]["e2e"] > base]
    if diverged:
        lines += [
            "",
            f"Diverged, with a loss on E2E above the untouched base's: {', '.join(diverged)}. The rate is too high for "
            "them, and the row does not say what they reach with a lower one.",
        ]
    missing = [name for name in (*ARMS, *METHOD_ARMS) if name not in runs.arms()]
    return [*lines, "", f"Not run: {', '.join(missing)}."] if missing else lines


def power(runs: Runs, lora: Point, akasa: Point) -> list[str]:
    """The smallest true difference that the confirmation shows with probability 0.8."""
    seeds = len(CONFIRM_SEEDS)
    least = []
    for kind in ("unrelated", "e2e"):
        pairs = zip(runs.ends(akasa, kind, confirm=True), runs.ends(lora, kind, confirm=True), strict=True)
        spread = statistics.stdev(ours - theirs for ours, theirs in pairs)
        least.append(detectable_effect(seeds - 1) * spread / math.sqrt(seeds))
    return [
        f"Power: with the spread of these {seeds} paired differences, a true difference of {least[0]:.4f} nats on "
        f"unrelated text and of {least[1]:.4f} on the task is shown with a probability of 80 %."
    ]


STYLE = """
svg { font: 12px system-ui, sans-serif; background: #fff } text { fill: #444 }
path { fill: none; stroke-width: 2 } path.s1 { stroke: #1f6feb } path.s2 { stroke: #b35900 }
path.s4 { stroke: #777; stroke-dasharray: 5 4; stroke-width: 1.2 }
path.grid, path.axis { stroke: #e4e4e4; stroke-width: 1 } path.axis { stroke: #888 }
circle.s1, text.s1 { fill: #1f6feb } circle.s2, text.s2 { fill: #b35900 }
.name { font-weight: 600; font-size: 14px }
@media (prefers-color-scheme: dark) {
  svg { background: #0d1117 } text { fill: #c9d1d9 } path.grid { stroke: #30363d }
  path.s1 { stroke: #58a6ff } circle.s1, text.s1 { fill: #58a6ff }
  path.s2 { stroke: #f0883e } circle.s2, text.s2 { fill: #f0883e }
}
"""
WIDTH, HEIGHT, LEFT, TOP, FLOOR = 720, 370, 46, 34, 330


def picture(runs: Runs) -> str:
    """An SVG file: loss on unrelated text against loss on the task, a point for every rate of LoRA and of akasa."""

    def means(point: Point) -> tuple[float, float]:
        held = runs.searched(point)
        x, y = (statistics.fmean(run["end"][kind] for run in held) for kind in ("e2e", "unrelated"))
        return x, y

    shown = {
        ("LoRA", "s2"): {point[1]: means(point) for point in LORA if point[0] == "lora"},
        ("akasa", "s1"): {point[1]: means(point) for point in AKASA if point[0] == "akasa-0.02"},
    }
    base = runs.base(confirm=False)
    places = [place for points in shown.values() for place in points.values()]
    x_scale = Scale([x for x, _ in places], LEFT, WIDTH - 20, log=False, margin=0.05)
    y_scale = Scale([base["unrelated"], *(y for _, y in places)], FLOOR, TOP, log=False, margin=0.14)

    def across(value: float) -> float:
        return x_scale(value) or 0.0

    def up(value: float) -> float:
        return y_scale(value) or 0.0

    level = up(base["unrelated"])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Loss of '
        f"SmolLM2-135M on unrelated text against its loss on E2E after training; the untouched base has "
        f'{base["unrelated"]:.3f} on unrelated text."><style>{STYLE}</style>',
        '<text x="10" y="17" class="name">loss on unrelated text after training (below the dashed line: nothing '
        "forgotten)</text>",
    ]
    for tick in y_scale.ticks(4):
        parts.append(f'<path class="grid" d="M{LEFT} {up(tick):.1f}H{WIDTH - 10}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_scale.ticks(5):
        parts.append(f'<text x="{across(tick):.1f}" y="{FLOOR + 16}" text-anchor="middle">{tick:g}</text>')
    parts += [
        f'<path class="axis" d="M{LEFT} {FLOOR}H{WIDTH - 10}"/>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">loss on the task after training, nats per token '
        f"(untouched base: {base['e2e']:.2f})</text>",
        f'<path class="s4" d="M{LEFT} {level:.1f}H{WIDTH - 10}"/>',
        f'<text x="{WIDTH - 12}" y="{level - 6:.1f}" text-anchor="end">untouched base, {base["unrelated"]:.3f}</text>',
    ]
    for (name, style), points in shown.items():
        drawn = [(rate, across(x), up(y)) for rate, (x, y) in sorted(points.items())]
        parts.append(f'<path class="{style}" d="M{"L".join(f"{x:.1f} {y:.1f}" for _, x, y in drawn)}"/>')
        for rate, x, y in drawn:
            label = f"{name}, learning rate {rate:g}" if rate == drawn[0][0] else f"{rate:g}"
            anchor, shift = ("end", 4) if rate == drawn[0][0] else ("start", 7)
            parts.append(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
            below = (28 if rate == drawn[0][0] else 20) if y > level else -14
            parts.append(
                f'<text class="{style}" x="{x + shift:.1f}" y="{y + below:.1f}" text-anchor="{anchor}">{label}</text>'
            )
    return "".join([*parts, "</svg>\n"])


def main() -> None:
    """Choose, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="JSON Lines file of python -m benchmarks.forgetting")
    parser.add_argument("--choose", action="store_true", help="print the points to confirm")
    options = parser.parse_args()
    runs = Runs(json.loads(line) for line in options.runs.read_text(encoding="utf-8").splitlines())
    if options.choose:
        print(",".join(f"{arm}@{rate}" for arm, rate in (choose(runs, LORA), choose(runs, AKASA), KASA)))
        return
    text = page(runs)
    PAGE.write_text(text, encoding="utf-8")
    PICTURE.write_text(picture(runs), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

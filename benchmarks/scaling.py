"""Scaling of KaSA's costs: time and memory of decomposition, load, step and export over model sizes.

python -m benchmarks.scaling [--quick] [--only decomposition,load,step,export] [--report-only]

One size is varied at a time. The measured points are kept in docs/results/benchmarks/scaling-points.json, so that
--only can measure in parts and --report-only writes the page from all of them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from scipy import stats
from scipy.optimize import nnls

from benchmarks.harness import RESULTS, Row, duration, publish
from benchmarks.models import llama
from kasatune import KasaConfig, export_adapter
from kasatune.linalg import TailSVD, tail_svd_many

KINDS = ("decomposition", "load", "step", "export")
BASE = {"hidden": 1024, "layers": 2, "rank": 16, "length": 128}
AXES = {
    "decomposition": {"hidden": (512, 1024, 2048, 4096), "layers": (1, 2, 4, 8), "rank": (4, 16, 32, 64, 128)},
    "load": {"hidden": (512, 1024, 2048, 4096), "layers": (1, 2, 4, 8), "rank": (4, 16, 64, 128)},
    "step": {
        "hidden": (512, 1024, 2048, 4096),
        "layers": (1, 2, 4, 8),
        "rank": (4, 16, 64, 128),
        "length": (64, 128, 256, 512),
    },
    "export": {"hidden": (512, 1024, 2048, 4096), "layers": (1, 2, 4, 8), "rank": (4, 16, 64, 128)},
}
QUICK = {
    "decomposition": {"hidden": (512, 1024, 2048), "layers": (1, 2, 4), "rank": (4, 16, 64)},
    "load": {"hidden": (256, 512, 1024), "layers": (1, 2, 4), "rank": (4, 16, 64)},
    "step": {"hidden": (256, 512, 1024), "layers": (1, 2, 4), "rank": (4, 16, 64), "length": (64, 128, 256)},
    "export": {"hidden": (256, 512, 1024), "layers": (1, 2, 4), "rank": (4, 16, 64)},
}
# What arithmetic alone would give, where all else is held: the exponents of time and of memory.
EXPECTED = {
    ("decomposition", "hidden"): (3, 2),
    ("decomposition", "layers"): (1, 0),
    ("decomposition", "rank"): (0, 0),
    ("load", "hidden"): (1, 1),
    ("load", "layers"): (1, 1),
    ("load", "rank"): (1, 1),
    ("step", "hidden"): (2, 1),
    ("step", "layers"): (1, 1),
    ("step", "rank"): (0, 0),
    ("step", "length"): (1, 1),
    ("export", "hidden"): (2, 1),
    ("export", "layers"): (1, 1),
    ("export", "rank"): (0, 1),
}
# (hidden, intermediate, layers, width of keys and values) of Llama 3.1's published configurations.
FORECAST = {"8": (4096, 14336, 32, 1024), "70": (8192, 28672, 80, 1024), "405": (16384, 53248, 126, 1024)}
TOKENS = 4096
SEEN = 1e6  # bytes: a rise of the resident size below it is lost in what the process holds free anyway
RATIO = 11 / 4  # intermediate / hidden in benchmarks.models.llama


@dataclass(frozen=True)
class Point:
    """One measurement, and what its forecast goes by.

    `count` weights take a time in proportion to their number, and to `work`: k^2 n summed over the weights for a
    decomposition, numbers in the adapter for a load, numbers in the base times tokens for a step, numbers in the
    adapted weights for an export. `held` bytes are what memory goes by: a k x k matrix in float64 for a decomposition,
    the adapter for the others, to which a step adds its activations.
    """

    kind: str
    axis: str
    sizes: dict[str, int]
    seconds: float
    peak: int | None
    count: int
    work: float
    held: float


Taken = tuple[float, int | None, int, float, float]


def shapes(hidden: int, intermediate: int, layers: int, narrow: int | None = None) -> list[tuple[int, int]]:
    """(out, in) of all linear layers of a Llama."""
    narrow = narrow or hidden
    block = [(hidden, hidden)] * 2 + [(narrow, hidden)] * 2 + [(intermediate, hidden)] * 2 + [(hidden, intermediate)]
    return block * layers


def products(found: list[tuple[int, int]]) -> float:
    return float(sum(min(shape) ** 2 * max(shape) for shape in found))


def numbers(found: list[tuple[int, int]]) -> float:
    return float(sum(a * b for a, b in found))


def square(found: list[tuple[int, int]]) -> float:
    """Bytes of the largest k x k matrix in float64."""
    return 8.0 * max(min(shape) for shape in found) ** 2


def factors(found: list[tuple[int, int]], rank: int) -> float:
    """Numbers in a native adapter: A, B and the tail."""
    return float(sum(2 * rank * (a + b) for a, b in found))


def status(field: str) -> int | None:
    """A field of /proc/self/status in bytes; None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def measured(run: Callable[[], object], turns: int) -> tuple[float, int | None]:
    """Median seconds, and how far the resident size rose above what it was before the last turn."""
    run()
    times = []
    for _ in range(turns):
        gc.collect()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed is given back, or a rise would hide in it
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the highest resident size
        before = status("VmRSS")
        run()
        highest = status("VmHWM")
    except OSError:
        return statistics.median(times), None
    return statistics.median(times), None if before is None or highest is None else max(0, highest - before)


def adapted(sizes: dict[str, int]) -> PeftModel:
    """KaSA on a model, with random triplets for tails: what they are changes no time but that of finding them."""

    def drawn(weights: Sequence[torch.Tensor], counts: Sequence[int], **_: object) -> list[TailSVD]:
        return [
            TailSVD(torch.randn(W.shape[0], q), torch.ones(q), torch.randn(q, W.shape[1]) / W.shape[1])
            for W, q in zip(weights, counts, strict=True)
        ]

    base = llama(sizes["hidden"], sizes["layers"], length=sizes["length"])
    with mock.patch("kasatune.kasa.truncation.compute_tails.tail_svd_many", drawn):
        return get_peft_model(base, KasaConfig(r=sizes["rank"], target_modules="all-linear"))  # type: ignore[return-value]


def decomposition(sizes: dict[str, int], turns: int) -> Taken:
    """Both shapes of a block, square and wide, once a layer."""
    hidden = sizes["hidden"]
    made = torch.Generator().manual_seed(0)
    found = [(hidden, hidden), (hidden, int(hidden * RATIO))] * sizes["layers"]
    weights = [torch.randn(*shape, generator=made) for shape in found]
    seconds, peak = measured(lambda: tail_svd_many(weights, [sizes["rank"]] * len(weights)), turns)
    return seconds, peak, len(found), products(found), square(found)


def load(sizes: dict[str, int], turns: int) -> Taken:
    found = shapes(sizes["hidden"], int(sizes["hidden"] * RATIO), sizes["layers"])
    with tempfile.TemporaryDirectory() as folder:
        model = adapted(sizes)
        model.save_pretrained(folder, save_embedding_layers=False)
        base = model.unload()
        seconds, peak = measured(lambda: PeftModel.from_pretrained(base, folder).unload(), turns)
    return seconds, peak, len(found), factors(found, sizes["rank"]), 4 * factors(found, sizes["rank"])


def step(sizes: dict[str, int], turns: int) -> Taken:
    """Forward, backward and AdamW of one row of `length` tokens."""
    found = shapes(sizes["hidden"], int(sizes["hidden"] * RATIO), sizes["layers"])
    model = adapted(sizes).train()
    ids = torch.randint(0, 512, (1, sizes["length"]), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def run() -> None:
        model(input_ids=ids).last_hidden_state.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds, peak = measured(run, turns)
    return seconds, peak, len(found), numbers(found) * sizes["length"], 4 * factors(found, sizes["rank"])


def export(sizes: dict[str, int], turns: int) -> Taken:
    """To a stock LoRA, with its certificate."""
    found = shapes(sizes["hidden"], int(sizes["hidden"] * RATIO), sizes["layers"])
    model = adapted(sizes)
    with tempfile.TemporaryDirectory() as folder:
        number = itertools.count()
        seconds, peak = measured(lambda: export_adapter(model, Path(folder) / str(next(number)), to="lora"), turns)
    return seconds, peak, len(found), numbers(found), 4 * factors(found, sizes["rank"])


MEASURES = {"decomposition": decomposition, "load": load, "step": step, "export": export}


def points(kind: str, axes: dict[str, tuple[int, ...]], turns: int) -> Iterator[Point]:
    taken: dict[str, Taken] = {}
    base = BASE | {"hidden": sorted(axes["hidden"])[(len(axes["hidden"]) - 1) // 2]}
    for axis, values in axes.items():
        for value in values:
            sizes = base | {axis: value}
            key = json.dumps(sizes, sort_keys=True)
            if key not in taken:
                taken[key] = MEASURES[kind](sizes, turns)
                gc.collect()
            print(f"{kind}: {axis} {value}: {duration(taken[key][0])}", flush=True)
            yield Point(kind, axis, sizes, *taken[key])


def slope(x: list[float], y: list[float]) -> tuple[float, float]:
    """The slope of log y over log x by least squares, and its standard error."""
    line = stats.linregress(np.log(x), np.log(y))
    return float(line.slope), float(line.stderr)


def extrapolated(columns: np.ndarray, y: np.ndarray, at: np.ndarray) -> tuple[float, float, float]:
    """The value at `at` of y = columns @ c with c >= 0, by least squares of the relative error, with a range.

    The range is that of 95 % of 1000 fits to points drawn with replacement, widened by the largest relative error of
    a point.
    """
    draw = np.random.default_rng(0)

    def fitted(rows: np.ndarray) -> np.ndarray:
        return nnls(columns[rows] / y[rows, None], np.ones(len(rows)))[0]

    every = np.arange(len(y))
    c = fitted(every)
    off = float(np.exp(np.abs(np.log(np.maximum(columns @ c, 1e-30) / y)).max()))
    values = [float(fitted(draw.choice(every, len(y))) @ at) for _ in range(1000)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(c @ at), float(low) / off, float(high) * off


def exponents(found: list[Point]) -> list[Row]:
    rows = []
    for kind in KINDS:
        for axis in dict.fromkeys(point.axis for point in found if point.kind == kind):
            chosen = [point for point in found if (point.kind, point.axis) == (kind, axis)]
            x = [float(point.sizes[axis]) for point in chosen]
            measured_here = {
                "time": [point.seconds for point in chosen],
                "memory": [float(p.peak or 0) for p in chosen],
            }
            for (what, y), expected in zip(measured_here.items(), EXPECTED[kind, axis], strict=True):
                seen = [place for place, value in enumerate(y) if what == "time" or value >= SEEN]
                if len(seen) < 3:
                    continue
                sizes, values = [x[place] for place in seen], [y[place] for place in seen]
                power, error = slope(sizes, values)
                span = f"{sizes[0]:.0f} to {sizes[-1]:.0f}"
                rows.append(
                    Row(
                        f"{what} of {kind} over {axis} {span}: exponent, against arithmetic's",
                        f"{power:.2f} ± {error:.2f}",
                        f"{expected}",
                        values[-1] / values[0] / (sizes[-1] / sizes[0]) ** expected,
                        None,
                    )
                )
    return rows


def forecast(found: list[Point]) -> list[str]:
    """A table of seconds and bytes for models of 8, 70 and 405 billion parameters."""
    lines = [
        "| billion parameters | "
        + " | ".join(f"{kind}, {what}" for what in ("time", "memory") for kind in KINDS)
        + " |",
        "|---|" + "---|" * 2 * len(KINDS),
    ]
    for name, (hidden, intermediate, layers, narrow) in FORECAST.items():
        model = shapes(hidden, intermediate, layers, narrow)
        adapter = factors(model, BASE["rank"])
        works = {
            "decomposition": products(model),
            "load": adapter,
            "step": numbers(model) * TOKENS,
            "export": numbers(model),
        }
        cells = []
        for kind in KINDS:
            # The work of a decomposition, a step and an export does not count the rank.
            chosen = [p for p in found if p.kind == kind and (p.axis != "rank" or kind == "load")]
            columns = np.array([[p.count, p.work] for p in chosen], dtype=float)
            at = np.array([len(model), works[kind]])
            cells.append(cell(columns, [p.seconds for p in chosen], at, human))
        for kind in KINDS:
            chosen = [
                p
                for p in found
                if p.kind == kind and (p.peak or 0) >= SEEN and (p.axis != "rank" or kind != "decomposition")
            ]
            columns = np.array([memory_terms(kind, p.held, p.sizes["rank"], p.sizes["length"]) for p in chosen])
            held = square(model) if kind == "decomposition" else 4 * adapter
            at = np.array(memory_terms(kind, held, BASE["rank"], TOKENS))
            cells.append(cell(columns, [float(p.peak or 1) for p in chosen], at, lambda size: f"{size / 1e9:.2g} GB"))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def memory_terms(kind: str, held: float, rank: int, length: int) -> list[float]:
    """What memory is a sum of: the bytes `held`; in a step also what the linear layers read and write."""
    return [held, held / (2 * rank) * length] if kind == "step" else [held]


def cell(columns: np.ndarray, y: list[float], at: np.ndarray, shown: Callable[[float], str]) -> str:
    if len(y) < 3:
        return "not measured"
    value, low, high = extrapolated(columns, np.array(y), at)
    return f"{shown(value)} ({shown(low)} to {shown(high)})"


def shown_memory(peak: int | None) -> str:
    if peak is None:
        return ""
    return f"{peak / 1e6:.0f} MB" if peak >= SEEN else f"below {SEEN / 1e6:.0f} MB"


def human(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s"


def notes(found: list[Point]) -> str:
    lines = [
        "An exponent p is the slope of log time over log size, by least squares, with its standard error; the ratio is "
        "the growth from the first size to the last over what arithmetic alone gives. Small sizes are bound by fixed "
        "costs, which makes an exponent smaller than arithmetic's.",
        "",
        f"Base: hidden {BASE['hidden']} (the middle of its axis where quick), layers {BASE['layers']}, rank "
        f"{BASE['rank']}, one row of {BASE['length']} tokens, Llama blocks with random float32 weights, all linear "
        "layers. A decomposition is that of one square and one wide weight a layer. Memory is how far the process's "
        "resident size rose above that of the model.",
        "",
        "| kind | varied | size | time | memory above the start |",
        "|---|---|---|---|---|",
        *(
            f"| {p.kind} | {p.axis} | {p.sizes[p.axis]} | {duration(p.seconds)} | {shown_memory(p.peak)} |"
            for p in found
        ),
        "",
        "## Forecast",
        "",
        "For this machine, were its memory enough: time is fitted as a share for each adapted weight and a share for "
        "the work (k² n of every weight for the decomposition, numbers of the adapter for a load, numbers of the base "
        f"times {TOKENS} tokens for a step, numbers of the adapted weights for an export), memory in proportion to a "
        "k x k matrix for the decomposition and to the adapter for the others, to which a step adds a share for all "
        "that the linear layers read and write. Not counted: the model itself, and that a step can recompute its "
        "activations. All linear layers of the shapes of Llama "
        f"3.1, float32, rank {BASE['rank']}. In brackets, the range of 95 % of fits to points drawn with replacement, "
        "widened by the largest relative error of a point. The sizes lie two to four decades beyond what was measured: "
        "the range holds only as far as the fit does.",
        "",
        *forecast(found),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, one turn")
    parser.add_argument("--only", default=",".join(KINDS), help="some of " + ",".join(KINDS))
    parser.add_argument("--report-only", action="store_true", help="write the page from what was measured before")
    options = parser.parse_args()
    kept = RESULTS / "scaling-points.json"
    found: list[Point] = []
    if not options.quick and kept.is_file():
        found = [Point(**point) for point in json.loads(kept.read_text(encoding="utf-8"))]
    for kind in () if options.report_only else options.only.split(","):
        axes, turns = (QUICK[kind], 1) if options.quick else (AXES[kind], 3)
        found = [point for point in found if point.kind != kind] + list(points(kind, axes, turns))
        if not options.quick:
            RESULTS.mkdir(exist_ok=True)
            kept.write_text(json.dumps([asdict(p) for p in found], indent=1) + "\n", encoding="utf-8")
    found.sort(key=lambda point: KINDS.index(point.kind))
    publish(
        "scaling",
        "How the cost of KaSA grows",
        "python -m benchmarks.scaling",
        exponents(found),
        notes(found),
        quick=options.quick,
        meaning="The ratio is the growth measured over what arithmetic alone gives.",
    )


if __name__ == "__main__":
    main()

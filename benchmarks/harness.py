"""Shared by all benchmarks: alternating measurements, medians, ratios to a target, and one Markdown page each."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch

_Result = TypeVar("_Result")

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "benchmarks"

MEANING = (
    "Times are medians over the turns; the ratio is the median of ours / peer turn by turn, which may differ from the "
    "quotient of the medians. Lower is better; the target is its upper bound."
)

SHORT = 0.05
"""Minimum duration of one measurement in seconds; fast calls are repeated to reach it."""


@dataclass(frozen=True)
class Row:
    """One figure: ours against a peer's, and the bound it has to keep.

    `target` bounds `ratio` = ours / peer from above; None where the figure is for information.
    """

    what: str
    ours: str
    peer: str
    ratio: float
    target: float | None

    @property
    def shown_ratio(self) -> str:
        """Three decimals, or three significant digits where it is below 0.01."""
        return f"{self.ratio:.3f}" if self.ratio >= 0.01 else f"{self.ratio:.3g}"

    @property
    def verdict(self) -> str:
        """met, MISSED, or nothing where there is no target."""
        if self.target is None:
            return ""
        return "met" if self.ratio <= self.target else "MISSED"


def arguments(description: str) -> argparse.Namespace:
    """--quick for a smaller form of the same measurement."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smaller shapes and fewer turns")
    return parser.parse_args()


def ratio_in_turn(
    ours: Callable[[], _Result],
    peer: Callable[[], _Result],
    turns: int,
    warmup: int = 1,
    undo: Callable[[_Result], object] | None = None,
) -> tuple[float, float, float]:
    """Median seconds of both and the median of the ratios turn by turn, which a drifting machine moves least.

    What takes less than a twentieth of a second is called several times in a turn, as often as fills that time.
    `undo` is given the result of each call, outside the time that is measured.
    """
    candidates = {"ours": ours, "peer": peer}
    calls = dict.fromkeys(candidates, 1)
    pairs = []
    for turn in range(warmup + turns):
        took = {}
        for name, run in list(candidates.items())[:: 1 if turn % 2 else -1]:
            gc.collect()
            seconds = 0.0
            for _ in range(calls[name]):
                start = time.perf_counter()
                result = run()
                seconds += time.perf_counter() - start
                if undo is not None:
                    undo(result)
            took[name] = seconds / calls[name]
        if turn >= warmup:
            pairs.append((took["ours"], took["peer"]))
        else:
            calls = {name: max(1, int(SHORT / took[name])) for name in candidates}
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def machine() -> dict[str, str]:
    """What a figure depends on: processor, threads, versions."""
    names = ("torch", "transformers", "peft", "kasatune")
    return {
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **{name: _version(name) for name in names},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from its sources
        return "not installed"


def publish(
    name: str,
    title: str,
    command: str,
    rows: Sequence[Row],
    notes: str = "",
    *,
    quick: bool = False,
    meaning: str = MEANING,
    folder: Path | None = None,
) -> None:
    """Print the table; write it as docs/results/benchmarks/NAME.md and .json, the quick form under other names.

    `meaning` says what the ratios of this table are; `folder` is another place for the files.
    """
    stem = f"{name}-quick" if quick else name
    results = RESULTS if folder is None else folder
    results.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).date().isoformat()
    facts = machine()
    lines = [
        f"# {title}",
        "",
        f"{stamp}, {facts['processor']}, {facts['threads']} threads; "
        + ", ".join(f"{key} {facts[key]}" for key in ("python", "torch", "transformers", "peft", "kasatune"))
        + ".",
        "",
        f"Made by `{command}{' --quick' if quick else ''}`. {meaning}",
        "",
        "| what | ours | peer | ratio | target | |",
        "|---|---|---|---|---|---|",
        *(
            f"| {r.what} | {r.ours} | {r.peer} | {r.shown_ratio} | {'' if r.target is None else f'{r.target:g}'} "
            f"| {r.verdict} |"
            for r in rows
        ),
        *(["", notes.strip()] if notes else []),
        "",
    ]
    text = "\n".join(lines)
    (results / f"{stem}.md").write_text(text, encoding="utf-8")
    record = {"date": stamp, "machine": facts, "command": command, "rows": [asdict(row) for row in rows]}
    (results / f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(text)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())

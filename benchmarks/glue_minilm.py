"""KaSA, PEFT's LoRA and the fitted head on GLUE tasks with MiniLM, by the recipes glue-minilm/* and several seeds.

python -m benchmarks.glue_minilm --data GLUE_FOLDER [--tasks sst2,cola,rte] [--seeds 0,1,2] [--report-only]

GLUE_FOLDER holds SST-2, CoLA and RTE in the form of the GLUE release. Finished runs are not
repeated, interrupted ones resume.
"""

from __future__ import annotations

import argparse
import statistics
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.harness import RESULTS, machine
from kasatune.io.run_layout import METRICS
from kasatune.recipes.schema import load_recipe
from kasatune.runs.metrics import read_metrics
from kasatune.training.train import train

TASKS = {"sst2": "SST-2", "cola": "CoLA", "rte": "RTE"}
RECIPES = Path(__file__).parent.parent / "src" / "kasatune" / "recipes" / "library" / "glue-minilm"
PRIMARY = {"sst2": "accuracy", "cola": "matthews_correlation", "rte": "accuracy"}


def run(task: str, method: str, seed: int, data: Path, runs: Path, *, train_missing: bool) -> dict | None:
    """Train one seed of one method, or read what an earlier call left; None for what is missing and not wanted."""
    out = runs / f"{task}-{method}-{seed}"
    if not (out / METRICS).is_file():
        if not train_missing:
            return None
        overrides = [
            f"task.data={data / TASKS[task]}",
            f"method.name={method}",
            f"training.seed={seed}",
            f"output={out}",
        ]
        train(load_recipe(RECIPES / f"{task}.yaml", overrides), out, resume=out.exists())
    return read_metrics(out)


def line(task: str, method: str, results: list[dict]) -> str:
    selected = [result["metrics"][PRIMARY[task]] for result in results]
    last = [result["last"]["metrics"][PRIMARY[task]] for result in results]
    seconds = statistics.median(result["seconds"]["train"] for result in results)
    shown = [f"{value:.4f}" for value in selected]
    spread = f" ± {statistics.stdev(selected):.4f}" if len(selected) > 1 else ""
    return (
        f"| {TASKS[task]} | {method} | {statistics.mean(selected):.4f}{spread} | {', '.join(shown)} "
        f"| {statistics.mean(last):.4f} | {results[0]['trainable_parameters']:,} | {seconds:.0f} |"
    )


def conclusion(page: Path) -> str:
    """What the page before this one says under its table, written by hand: it stays, to be read again."""
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    _, heading, text = before.partition("\n## What it shows\n")
    return heading + text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--report-only", action="store_true", help="write the page from the finished runs")
    parser.add_argument("--runs", type=Path, default=Path("runs/glue-minilm"))
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    rows = []
    for task in given.tasks.split(","):
        for method in ("kasa", "lora", "head"):
            wanted = seeds[:1] if method == "head" else seeds
            asked = (
                run(task, method, seed, given.data, given.runs, train_missing=not given.report_only) for seed in wanted
            )
            if results := [result for result in asked if result is not None]:
                rows.append(line(task, method, results))
                print(rows[-1], flush=True)
    facts = machine()
    text = "\n".join(
        [
            "# GLUE with MiniLM: KaSA, PEFT's LoRA and the fitted head",
            "",
            f"{datetime.now(UTC).date().isoformat()}, {facts['processor']}, {facts['threads']} threads; torch "
            f"{facts['torch']}, transformers {facts['transformers']}, peft {facts['peft']}, kasatune "
            f"{facts['kasatune']}.",
            "",
            "Made by `python -m benchmarks.glue_minilm --data GLUE_FOLDER`: the recipes `glue-minilm/*`, with "
            "nothing changed between the methods but `method.name`. Accuracy, for CoLA Matthews' correlation, on the "
            "validation set; the best epoch is chosen on that same set, as the KaSA paper does, and the last epoch "
            "stands beside it. The head is logistic regression on the frozen encoder, which no seed moves.",
            "",
            "| task | method | mean over seeds | seeds | last epoch | trained without head | seconds |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "glue-minilm.md"
    path.write_text(text + conclusion(path), encoding="utf-8")


if __name__ == "__main__":
    main()

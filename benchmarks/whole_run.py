"""Time of complete runs: `kasatune train` compared with PEFT's LoRA and KaSA under a plain Trainer.

python -m benchmarks.whole_run [--quick] [--only demo,rte] [--data RTE_FOLDER] [--rows N] [--turns N] [--one-thread]

Each run is a separate process: imports, reading, tokenizing, attaching, training, one evaluation per epoch, saving.
The measured runs are kept in docs/results/benchmarks/whole_run-runs.json, so that --only can measure in parts.
--one-thread counts the processor time of a single thread, which other load on the machine affects little.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import RESULTS, Row, duration, publish
from kasatune.data.tasks import load_task
from kasatune.data.tasks.dataset import TaskData
from kasatune.io.model_location import find_model
from kasatune.recipes.catalogue import built_in
from kasatune.recipes.schema import Recipe, load_recipe, to_yaml
from kasatune.runs.metrics import read_metrics

OURS, LORA, KASA = "kasatune's KaSA", "PEFT's LoRA", "PEFT's KaSA"
QUICK_ROWS = 1280
EVALUATED = 4  # with --rows, training rows for one that is evaluated
Took = dict[str, float]


def demo(folder: Path, rows: int | None) -> Recipe:
    """The demo's recipe on its own rows, written as files so that no run harvests them again."""
    overrides = [f"task.max_train={rows}", f"task.max_eval={rows // EVALUATED}"] if rows else []
    recipe = load_recipe(built_in()["demo"], overrides)
    read = load_task(recipe.task)
    names, files = read.label_names or (), {}
    for split in ("train", "validation"):
        texts, labels = read.splits[split].first, read.splits[split].labels or ()
        path = folder / f"{split}.jsonl"
        lines = (json.dumps({"text": a, "label": names[int(b)]}) for a, b in zip(texts, labels, strict=True))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        files[split] = str(path)
    task = {"name": "classification", **files, "text": "text", "label": "label", "max_length": recipe.task.max_length}
    return Recipe.model_validate(recipe.model_dump() | {"task": task})


def rte(data: str, rows: int | None) -> Recipe:
    """One epoch of the recipe glue-minilm/rte."""
    overrides = [f"task.data={data}", "training.epochs=1"]
    overrides += [f"task.max_train={rows}", f"task.max_eval={rows // EVALUATED}"] if rows else []
    return load_recipe(built_in()["glue-minilm/rte"], overrides)


def processes(recipe: Recipe, read: TaskData, folder: Path) -> dict[str, Callable[[Path], list[str]]]:
    """By name, the command that runs into a folder."""
    recipe = Recipe.model_validate(
        recipe.model_dump() | {"training": recipe.training.model_dump() | {"device": "cpu"}, "output": "unused"}
    )
    ours = folder / "recipe.yaml"
    ours.write_text(to_yaml(recipe), encoding="utf-8")
    rows = folder / "rows.json"
    content: dict[str, Any] = {"labels": len(read.label_names or ())}
    for split in ("train", "validation"):
        found = read.splits[split]
        content[split] = {"first": found.first, "second": found.second, "labels": found.labels}
    rows.write_text(json.dumps(content), encoding="utf-8")

    def plain(kasa: bool) -> Callable[[Path], list[str]]:
        def command(out: Path) -> list[str]:
            out.mkdir()
            settings = {
                "kasa": kasa,
                "rows": str(rows),
                "out": str(out),
                "model": find_model(recipe.model.name).path,
                "length": recipe.task.max_length,
                "method": recipe.method.model_dump(),
                "training": recipe.training.model_dump(),
            }
            (out / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
            return ["-m", "benchmarks.plain_trainer", str(out / "settings.json")]

        return command

    return {
        OURS: lambda out: ["-m", "kasatune", "train", str(ours), "--out", str(out)],
        LORA: plain(False),
        KASA: plain(True),
    }


def run(command: Callable[[Path], list[str]], name: str, *, one_thread: bool) -> Took:
    """Seconds of a process from start to end, and of its training."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "KASATUNE_CACHE": "off"}
    environment |= {"OMP_NUM_THREADS": "1"} if one_thread else {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        arguments = command(out)
        used, start = processor_seconds(), time.perf_counter()
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment
        )
        seconds, used = time.perf_counter() - start, processor_seconds() - used
        if done.returncode:
            raise SystemExit(f"{name}: exit status {done.returncode}: {done.stderr.strip()[-2000:]}")
        if name == OURS:
            parts = read_metrics(out)["seconds"]
            training = parts["train"] + parts["evaluate"]
        else:
            training = json.loads(done.stdout.strip().splitlines()[-1])["training"]
    return {"total": used if one_thread else seconds, "training": training}


def processor_seconds() -> float:
    """Of all processes that this one waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(recipe: Recipe, turns: int, *, one_thread: bool) -> dict[str, Any]:
    """Every candidate in turn."""
    read = load_task(recipe.task)
    found: dict[str, list[Took]] = {}
    with tempfile.TemporaryDirectory() as folder:
        candidates = processes(recipe, read, Path(folder))
        for turn in range(turns):
            for name in list(candidates)[:: 1 if turn % 2 else -1]:
                found.setdefault(name, []).append(run(candidates[name], name, one_thread=one_thread))
                print(f"{name}: {found[name][-1]}", file=sys.stderr, flush=True)
    rows = {split: len(read.splits[split].first) for split in ("train", "validation")}
    return {
        "rows": rows,
        "epochs": recipe.training.epochs,
        "targets": list(recipe.method.target_modules),
        "took": found,
    }


def table(cases: dict[str, dict[str, Any]]) -> list[Row]:
    rows = []
    for title, case in cases.items():
        took = case["took"]
        for peer, what, target in ((LORA, "total", 1.05), (KASA, "total", 1.0), (LORA, "training", None)):
            ours, theirs = ([one[what] for one in took[name]] for name in (OURS, peer))
            rows.append(
                Row(
                    f"{title}: {'the whole' if what == 'total' else 'training and evaluation alone'} / {peer}",
                    duration(statistics.median(ours)),
                    duration(statistics.median(theirs)),
                    statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
                    target,
                )
            )
    return rows


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def described(cases: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"{title}: {counted(case['epochs'], 'epoch')}, {case['rows']['train']:,} rows, "
        f"{case['rows']['validation']:,} rows evaluated after each, adapters on {', '.join(case['targets'])}, "
        f"{counted(len(case['took'][OURS]), 'turn')}."
        for title, case in cases.items()
    ]
    return " ".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"one epoch of {QUICK_ROWS} rows of the demo")
    parser.add_argument("--only", default="demo,rte", help="some of demo,rte")
    parser.add_argument("--data", help="the folder RTE of the GLUE release; without it, the demo alone")
    parser.add_argument("--rows", type=int, help="training rows at most; all without it")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--one-thread", action="store_true", help="one thread, in seconds of the processor")
    options = parser.parse_args()
    if options.one_thread:
        torch.set_num_threads(1)  # what the page says
    rows = QUICK_ROWS if options.quick else options.rows
    name = "whole_run-one-thread" if options.one_thread else "whole_run"
    kept = RESULTS / f"{name}-runs.json"
    cases = {} if options.quick or not kept.is_file() else json.loads(kept.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        for case in ("demo",) if options.quick else options.only.split(","):
            if case == "demo":
                recipe = demo(Path(folder), rows)
                if options.quick:
                    training = recipe.training.model_dump() | {"epochs": 1}
                    recipe = Recipe.model_validate(recipe.model_dump() | {"training": training})
            elif options.data:
                recipe = rte(options.data, rows)
            else:
                continue
            title = {"demo": "the demo", "rte": "RTE"}[case]
            cases[title] = measure(recipe, options.turns, one_thread=options.one_thread)
            if not options.quick:
                RESULTS.mkdir(exist_ok=True)
                kept.write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")
    publish(
        name,
        "Whole runs: kasatune's KaSA against PEFT with a plain Trainer",
        "python -m benchmarks.whole_run --data RTE_FOLDER"
        + (" --rows N" if options.rows else "")
        + (" --one-thread" if options.one_thread else ""),
        table(cases),
        f"{described(cases)} Each run is a separate process, imports included; the model is MiniLM, the settings are "
        "those of the built-in recipes, and the cache of tails is off. kasatune also checks that the saved files hold "
        "what was scored, certifies the exported LoRA, and writes the spectra, a report and a model card; the plain "
        "script does none of these."
        + (" The whole is in seconds of the processor, one thread: others used the machine." * options.one_thread),
        quick=options.quick,
    )


if __name__ == "__main__":
    main()

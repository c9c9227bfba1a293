"""Convert one trained adapter of a Llama into every format and back, and measure the differences.

python -m benchmarks.formats_round_trip MODEL_FOLDER [MODEL_FOLDER ...] [--page FILE] [--steps N]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness import machine
from kasatune import KasaConfig, export_adapter, load_adapter
from kasatune.adapter_tools.export import convert_adapter
from kasatune.adapters.recognize_format import FORMATS
from kasatune.errors import InputError
from kasatune.io.library_noise import quiet

PAGE = Path(__file__).parents[1] / "docs" / "results" / "format-round-trip.md"
TEXT = (
    "Once upon a time there was a small robot who lived by the sea. Every morning it counted the boats. "
    "One day a boat did not come back, and the robot went out to look for it. It walked along the beach until it "
    "was dark, and then it saw a light on the water."
)
PROMPT, NEW = 6, 40
# In layers that are square or higher than wide the paper and the authors' code drop the same singular triplets.
TARGETS: dict[str, list[str] | str] = {
    "q, o, gate, up": ["q_proj", "o_proj", "gate_proj", "up_proj"],
    "all linear layers, two ranks": "all-linear",
}


class Trained(NamedTuple):
    """A trained adapter, the text as token ids, and what the adapted model gives for it."""

    folder: Path
    model: Any
    ids: Tensor
    logits: Tensor
    tokens: Tensor
    losses: tuple[float, float]


def base_of(folder: Path) -> Any:
    """The untouched base."""
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def train(folder: Path, targets: list[str] | str, steps: int) -> Trained:
    """An adapter trained on the text for a few steps."""
    ids = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt").input_ids
    torch.manual_seed(0)
    ranks = {"down_proj": 6} if targets == "all-linear" else {}
    model = get_peft_model(
        base_of(folder), KasaConfig(r=4, target_modules=targets, rank_pattern=ranks, task_type="CAUSAL_LM")
    ).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return Trained(folder, model, ids, outputs(model, ids), greedy(model, ids), (losses[0], losses[-1]))


@torch.no_grad()
def outputs(model: nn.Module, ids: Tensor) -> Tensor:
    """The logits for the whole text."""
    return model.eval()(input_ids=ids).logits


def greedy(model: Any, ids: Tensor) -> Tensor:
    """The tokens that follow the beginning of the text."""
    return model.eval().generate(input_ids=ids[:, :PROMPT], max_new_tokens=NEW, do_sample=False, eos_token_id=-1)


def away(model: nn.Module, trained: Trained) -> str:
    """Largest |y - y'| over the largest |y|, and how many greedy tokens are equal."""
    found = outputs(model, trained.ids)
    distance = float((found - trained.logits).abs().max() / trained.logits.abs().max())
    same = int((greedy(model, trained.ids) == trained.tokens)[:, PROMPT:].sum())
    return f"{'equal bits' if torch.equal(found, trained.logits) else f'{distance:.1e}'}, {same} of {NEW} tokens"


def rows(trained: Trained, name: str, work: Path) -> Iterator[list[str]]:
    """There and back through every format."""
    trained.model.save_pretrained(work / "native")
    for to in FORMATS:
        there = work / to
        try:
            export_adapter(trained.model, there, to=to)
        except InputError as fault:
            text = str(fault)
            yield [name, to, f"refused: {text if len(text) <= 150 else text[:147] + '...'}", "", "", ""]
            continue
        certified = json.loads((there / "certificate.json").read_text())["outputs"]
        stated = f"{certified['largest_difference']:.1e}, mean {certified['mean_difference']:.1e}"
        here = away(load_adapter(base_of(trained.folder), there), trained)
        peft = "" if to == "authors" else away(PeftModel.from_pretrained(base_of(trained.folder), str(there)), trained)
        if to == "lora":
            yield [name, to, here, peft, "a LoRA has no singular values to go back to", stated]
            continue
        back = export_adapter(there, work / f"{to}-back", to="kasa", base=base_of(trained.folder))
        yield [name, to, here, peft, away(load_adapter(base_of(trained.folder), back), trained), stated]
    if find_spec("gguf") is None:
        return
    record = convert_adapter(work / "native", work / "gguf", "gguf", base=str(trained.folder))
    yield [name, "gguf", f"updates read back: {record['gguf']['largest_relative_difference']:.1e}", "", "", "as lora"]


def table(folder: Path, steps: int) -> list[str]:
    """The lines about one model."""
    lines = []
    found: list[list[str]] = []
    for name, targets in TARGETS.items():
        trained = train(folder, targets, steps)
        moved = outputs(base_of(folder), trained.ids)
        apart = float((moved - trained.logits).abs().max() / trained.logits.abs().max())
        lines.append(
            f"- {name}: loss {trained.losses[0]:.2f} to {trained.losses[1]:.2f} in {steps} steps; without the adapter "
            f"the outputs are off by {apart:.2g}, and "
            f"{int((greedy(base_of(folder), trained.ids) == trained.tokens)[:, PROMPT:].sum())} of {NEW} tokens agree."
        )
        with tempfile.TemporaryDirectory() as work:
            found += rows(trained, name, Path(work))
    head = ["layers", "format", "loaded here", "loaded by PEFT alone", "back to the native form", "certificate"]
    return [
        f"## {folder.name}",
        "",
        *lines,
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in found),
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL_FOLDER")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--page", type=Path, default=PAGE)
    chosen = parser.parse_args()
    with quiet(lambda text: None):
        tables = [line for folder in chosen.models for line in table(folder, chosen.steps)]
    facts = machine()
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "torch", "transformers", "peft", "kasatune"))
    text = "\n".join(
        [
            "# One adapter, every format, there and back",
            "",
            f"{datetime.now(UTC).date().isoformat()}, {facts['processor']}, {facts['threads']} threads; {versions}.",
            "",
            "Made by `python -m benchmarks.formats_round_trip MODEL_FOLDER ...`, on pretrained Llamas in float32: an "
            "adapter of rank 4 is trained on a few sentences, exported to each format, loaded on a fresh base and "
            "exported back. Differences are the largest of the logits for the whole text over the largest logit; "
            f"beside them how many of {NEW} greedily decoded tokens are those of the trained model. The certificate "
            "(`certificate.json` beside every export) holds the largest and the mean difference for its own fixed "
            "inputs.",
            "",
            "In float32 a sum in another order moves an output by about 1e-6 of the largest. `peft-kasa` and `authors` "
            "leave it to their reader to decompose the base again, in float32, whose rounding comes on top; read here, "
            "the decomposition is the float64 one that the adapter was trained with.",
            "",
            *tables,
        ]
    )
    chosen.page.parent.mkdir(parents=True, exist_ok=True)
    chosen.page.write_text(text.rstrip() + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

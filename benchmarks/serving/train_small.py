"""Train a small Llama with KaSA for a few steps; save the adapter and the greedy tokens with and without it.

Usage: python train_small.py MODEL_FOLDER OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from kasatune import KasaConfig

TEXT = (
    "Once upon a time there was a small robot who lived by the sea. Every morning it counted the boats. "
    "One day a boat did not come back, and the robot went out to look for it."
)
PROMPT, NEW = 6, 40


def main(folder: Path, out: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt").input_ids
    torch.manual_seed(0)
    # All seven linear layers of every block, two ranks: what a program with a fixed idea of an adapter would get wrong.
    config = KasaConfig(r=4, target_modules="all-linear", rank_pattern={"down_proj": 6}, task_type="CAUSAL_LM")
    model = get_peft_model(base, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(20):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(out)
    expected = {"prompt": ids[0, :PROMPT].tolist(), "adapted": greedy(model, ids)}
    with model.disable_adapter():
        expected["plain"] = greedy(model, ids)
    (out / "expected.json").write_text(json.dumps(expected) + "\n")


def greedy(model: torch.nn.Module, ids: torch.Tensor) -> list[int]:
    found = model.generate(input_ids=ids[:, :PROMPT], max_new_tokens=NEW, do_sample=False, eos_token_id=-1)
    return found[0, PROMPT:].tolist()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

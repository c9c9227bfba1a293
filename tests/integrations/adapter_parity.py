"""Run with a trainer's Python: export a KaSA checkpoint to LoRA, and load that with PEFT alone.

adapter_parity.py export BASE CHECKPOINT LORA     kasatune and PEFT; writes LORA and the logits of the KaSA adapter
adapter_parity.py plain BASE LORA                 PEFT without kasatune; compares its logits with those
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

LOGITS = "logits.safetensors"
IDS = torch.arange(4, 16).reshape(2, 6)


def logits(base: str, adapter: str) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        untouched = model(input_ids=IDS).logits
        adapted = PeftModel.from_pretrained(model, adapter).eval()(input_ids=IDS).logits
    assert (adapted - untouched).abs().max() > 1e-3, "the adapter changes nothing"
    return adapted


def export(base: str, checkpoint: str, lora: str) -> None:
    import kasatune

    before = logits(base, checkpoint)
    kasatune.export_adapter(checkpoint, lora, to="lora")
    save_file({"logits": before}, Path(lora) / LOGITS)


def plain(base: str, lora: str) -> None:
    after = logits(base, lora)
    assert "kasatune" not in sys.modules
    torch.testing.assert_close(after, load_file(Path(lora) / LOGITS)["logits"], rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    {"export": export, "plain": plain}[sys.argv[1]](*sys.argv[2:])

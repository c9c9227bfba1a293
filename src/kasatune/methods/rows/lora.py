"""LoRA and its descendants that PEFT computes."""

from __future__ import annotations

from kasatune.methods.info import MethodInfo, Option

_LINEAR = "layers Linear and Conv1D"

ROWS = (
    MethodInfo(
        name="lora",
        title="LoRA",
        paper="arXiv 2106.09685",
        trains="A and B of the targeted layers",
        bases=_LINEAR,
        implemented_by="peft",
        module="kasatune.methods.lora",
    ),
    MethodInfo(
        name="lora-plus",
        title="LoRA+",
        paper="arXiv 2402.12354",
        trains="A and B of the targeted layers, B with a learning rate of its own",
        bases=_LINEAR,
        implemented_by="peft",
        module="kasatune.methods.lora_plus",
        options=(Option("ratio", "number", 16.0, "the learning rate of B over that of A", low=1),),
    ),
)

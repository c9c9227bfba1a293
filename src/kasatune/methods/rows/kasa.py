"""KaSA, and the other program that computes it."""

from __future__ import annotations

from kasatune.methods.info import LORA_KEYS, MethodInfo, Option

_TRUNCATED = "the r smallest singular triplets of each targeted weight are dropped"

ROWS = (
    MethodInfo(
        name="kasa",
        title="KaSA",
        paper="arXiv 2412.06071",
        trains="A, B and sigma of the targeted layers; their r smallest singular triplets are dropped",
        bases="layers Linear and Conv1D and convolutions of kernel 1, quantized bases too",
        implemented_by="kasatune",
        module="kasatune.methods.kasa",
        uses=(*LORA_KEYS, "convention", "core", "truncation", "beta", "gamma", "tails"),
        options=(
            Option("truncate", "flag", True, "false drops nothing from the weights: for ablations"),
            Option("sigma", "choice", "trained", "one leaves sigma at 1, untrained: for ablations", ("trained", "one")),
        ),
        start=_TRUNCATED,
    ),
    MethodInfo(
        name="peft-kasa",
        title="KaSA as in PEFT",
        paper="arXiv 2412.06071",
        trains="A, B and sigma of the targeted layers; their r smallest singular triplets are dropped",
        bases="layers Linear, not quantized",
        implemented_by="peft",
        module="kasatune.methods.peft_kasa",
        uses=(*LORA_KEYS, "beta", "gamma"),
        start=_TRUNCATED,
        disable="the base's weights are truncated in place",
    ),
)

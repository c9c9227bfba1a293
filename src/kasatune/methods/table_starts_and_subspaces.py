"""Rows of the table of methods: LoRA that starts from data (EVA, LoRA-GA, ...), and updates confined to a subspace."""

from __future__ import annotations

from kasatune.methods.info import LORA_KEYS, MethodInfo, Option
from kasatune.methods.table_low_rank import FLOAT, LINEAR, LORA_COUNT, RESIDUAL

_ROWS_OF_GRADIENT = Option("samples", "integer", 64, "training rows from which the gradient is estimated", low=1)
_GRADIENT_OF_THE_MODEL = (
    "it starts from the gradient of the loss that the model itself computes, which is not that of pairs of answers"
)

ROWS = (
    MethodInfo(
        name="eva",
        title="EVA",
        paper="arXiv 2410.07170",
        trains="A and B of the adapted layers; A starts in the directions in which training rows vary most",
        parameters=LORA_COUNT,
        bases=LINEAR,
        implemented_by="peft",
        module="kasatune.methods.eva",
        options=(
            Option("samples", "integer", 256, "training rows from which the directions are computed", low=1),
            Option(
                "tau",
                "number",
                0.99,
                "cosine similarity between two batches above which a direction has settled",
                low=0,
                high=1,
                above=True,
            ),
        ),
    ),
    MethodInfo(
        name="lora-ga",
        title="LoRA-GA",
        paper="arXiv 2407.05000",
        trains="A and B of the adapted layers, initialized with singular vectors of the gradient",
        parameters=LORA_COUNT,
        bases=FLOAT,
        implemented_by="peft",
        module="kasatune.methods.lora_ga",
        options=(
            _ROWS_OF_GRADIENT,
            Option("gamma", "integer", 16, "divisor of the initial scale, out^(1/4) / sqrt(gamma)", low=1),
        ),
        disable=RESIDUAL,
        no_preference=_GRADIENT_OF_THE_MODEL,
        no_reward=_GRADIENT_OF_THE_MODEL,
        needs_float_base=True,
    ),
    MethodInfo(
        name="lora-one",
        title="LoRA-One",
        paper="arXiv 2502.01235",
        trains="A and B of the adapted layers, initialized with one gradient step of rank r",
        parameters=LORA_COUNT,
        bases=FLOAT,
        implemented_by="kasatune, peft",
        module="kasatune.methods.lora_one",
        options=(
            _ROWS_OF_GRADIENT,
            Option("gamma", "number", 128.0, "divisor of the first step", low=0, above=True),
        ),
        start="it begins one step of gradient descent of rank r away from the base",
        no_preference=_GRADIENT_OF_THE_MODEL,
        no_reward=_GRADIENT_OF_THE_MODEL,
        needs_float_base=True,
    ),
    MethodInfo(
        name="lora-null",
        title="LoRA-Null",
        paper="arXiv 2503.02659",
        trains="A and B of the adapted layers, initialized with what W does in the directions that activations use "
        "least",
        parameters=f"{LORA_COUNT}, or r out with `freeze_a`",
        bases=FLOAT,
        implemented_by="kasatune, peft",
        module="kasatune.methods.lora_null",
        uses=(*LORA_KEYS, "calibration"),
        options=(Option("freeze_a", "flag", False, "train B alone, the authors' second form"),),
        disable=RESIDUAL,
        needs_float_base=True,
    ),
    MethodInfo(
        name="oplora",
        title="OPLoRA",
        paper="arXiv 2510.13003",
        trains="A and B of the adapted layers, projected away from the k largest singular triplets of W",
        parameters=LORA_COUNT,
        bases=LINEAR,
        implemented_by="kasatune",
        module="kasatune.methods.oplora",
        reconstructed=True,
        options=(Option("k", "integer", 16, "singular triplets of each weight that are preserved", low=1),),
        frozen_rank=2,
    ),
    MethodInfo(
        name="osf",
        title="OSF",
        paper="arXiv 2504.07097",
        trains="the smaller singular triplets of the adapted layers, orthogonally to the larger ones",
        parameters="(1 - preserved) min(in, out) (in + out + 1)",
        bases="Linear layers, not quantized",
        implemented_by="peft",
        module="kasatune.methods.osf",
        uses=("target_modules",),
        options=(
            Option(
                "preserved",
                "number",
                0.5,
                "share of the singular triplets of each weight, the largest first, that stay as they are",
                low=0,
                high=1,
                above=True,
                below=True,
            ),
        ),
        needs_float_base=True,
    ),
)

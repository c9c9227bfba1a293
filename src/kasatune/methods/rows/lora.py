"""LoRA and its descendants that PEFT computes."""

from __future__ import annotations

from kasatune.methods.info import LORA_KEYS, MethodInfo, Option

_LINEAR = "layers Linear and Conv1D"
_WEIGHTS = "layers Linear and Conv1D, not quantized"
_RESIDUAL = "while it trains, the base's weights hold what A and B left; the saved adapter leaves the base alone"
_NOT_RS = tuple(key for key in LORA_KEYS if key != "use_rslora")

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
        name="rslora",
        title="rsLoRA",
        paper="arXiv 2312.03732",
        trains="A and B of the targeted layers, scaled by alpha / sqrt(r)",
        bases=_LINEAR,
        implemented_by="peft",
        module="kasatune.methods.rslora",
        uses=_NOT_RS,
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
    MethodInfo(
        name="dora",
        title="DoRA",
        paper="arXiv 2402.09353",
        trains="A, B and the norm of every row of the targeted layers",
        bases=_LINEAR,
        implemented_by="peft",
        module="kasatune.methods.dora",
    ),
    MethodInfo(
        name="adalora",
        title="AdaLoRA",
        paper="arXiv 2303.10512",
        trains="P, E and Q of the targeted layers, of which the least important are switched off",
        bases=_LINEAR,
        implemented_by="peft",
        module="kasatune.methods.adalora",
        uses=_NOT_RS,
        options=(
            Option("initial_r", "integer", None, "the rank to begin with; null for 1.5 r", low=1, optional=True),
            Option("initial_share", "number", 0.1, "share of the steps before any rank is taken", low=0, high=0.5),
            Option(
                "final_share",
                "number",
                0.3,
                "share of the steps after the last rank is taken",
                low=0,
                high=0.5,
                below=True,
            ),
            Option("interval", "integer", 1, "steps from one allocation to the next", low=1),
            Option("beta1", "number", 0.85, "memory of the importance", low=0, high=1, above=True, below=True),
            Option("beta2", "number", 0.85, "memory of its uncertainty", low=0, high=1, above=True, below=True),
            Option("orthogonality", "number", 0.5, "the weight of the orthogonality penalty", low=0),
        ),
    ),
    MethodInfo(
        name="pissa",
        title="PiSSA",
        paper="arXiv 2404.02948",
        trains="A and B of the targeted layers, which begin as their r largest singular triplets",
        bases=_WEIGHTS,
        implemented_by="peft",
        module="kasatune.methods.pissa",
        options=(
            Option(
                "iterations",
                "integer",
                None,
                "subspace iterations of a fast decomposition; null for the exact one",
                low=1,
                optional=True,
            ),
        ),
        disable=_RESIDUAL,
    ),
    MethodInfo(
        name="milora",
        title="MiLoRA",
        paper="arXiv 2406.09044",
        trains="A and B of the targeted layers, which begin as their r smallest singular triplets",
        bases=_WEIGHTS,
        implemented_by="kasatune, peft",
        module="kasatune.methods.milora",
        disable=_RESIDUAL,
    ),
    MethodInfo(
        name="corda",
        title="CorDA",
        paper="arXiv 2406.05223",
        trains="A and B of the targeted layers, which begin as r components of W times the covariance of its inputs",
        bases=_WEIGHTS,
        implemented_by="peft",
        module="kasatune.methods.corda",
        options=(
            Option("components", "choice", "ipm", "the largest (ipm) or the smallest (kpm)", choices=("ipm", "kpm")),
            Option("samples", "integer", 256, "training rows that the covariance is measured on", low=1),
        ),
        disable=_RESIDUAL,
    ),
    MethodInfo(
        name="olora",
        title="OLoRA",
        paper="arXiv 2406.01775",
        trains="A and B of the targeted layers, which begin as parts of a QR decomposition",
        bases="layers Linear, not quantized",
        implemented_by="peft",
        module="kasatune.methods.olora",
        disable=_RESIDUAL,
    ),
)

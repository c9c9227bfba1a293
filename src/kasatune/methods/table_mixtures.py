"""Rows of the table of methods: mixtures of LoRA experts, routed by token or by prompt."""

from __future__ import annotations

from kasatune.methods.info import MethodInfo, Option

_LINEAR = "Linear and Conv1D layers, quantized bases included"
_NOT_MERGEABLE = "its update depends on the input, through the router"
_EXPERTS = Option("experts", "integer", 8, "N, the number of experts of a layer", low=2)
_TOP_K = Option("top_k", "integer", 2, "experts chosen for a token, at most `experts`", low=1)

ROWS = (
    MethodInfo(
        name="moe-lora",
        title="MoE-LoRA",
        paper="arXiv 2309.05444",
        trains="N LoRA experts for each adapted layer, and a router that chooses `top_k` of them for each token",
        parameters="N r (in + out) + N in",
        bases=_LINEAR,
        implemented_by="kasatune",
        module="kasatune.methods.moe_lora",
        reconstructed=True,
        options=(
            _EXPERTS,
            _TOP_K,
            Option("balance_weight", "number", 1e-2, "weight of the routers' load-balancing loss", low=0),
        ),
        merge=_NOT_MERGEABLE,
    ),
    MethodInfo(
        name="mor",
        title="MoR",
        paper="arXiv 2410.13408",
        trains="A and B of the adapted layers, N pairs of vectors that rescale them, and a router that weights the "
        "pairs for each token",
        parameters="r (in + out) + N (r + out) + N in",
        bases=_LINEAR,
        implemented_by="kasatune",
        module="kasatune.methods.mor",
        reconstructed=True,
        options=(_EXPERTS,),
        merge=_NOT_MERGEABLE,
    ),
    MethodInfo(
        name="malora",
        title="MALoRA",
        paper="arXiv 2410.22782",
        trains="for each adapted layer one shared down-projection, N small ones and N up-projections, and a router "
        "that chooses `top_k` of them for each token",
        parameters="r in + N `up_rank` (r + out) + N in, `up_rank` = 9/8 r",
        bases=_LINEAR,
        implemented_by="kasatune",
        module="kasatune.methods.malora",
        reconstructed=True,
        options=(
            _EXPERTS,
            _TOP_K,
            Option("up_rank", "integer", None, "rank of the up-projections; null for 9/8 r", low=1, optional=True),
            Option("train_shared", "flag", True, "false keeps the initial value of the shared down-projection"),
            Option("balance_weight", "number", 1e-3, "weight of the routers' load-balancing loss", low=0),
        ),
        merge=_NOT_MERGEABLE,
    ),
    MethodInfo(
        name="milora-moe",
        title="MiLoRA (mixture)",
        paper="arXiv 2410.18035",
        trains="A and B of the adapted layers, and in each block a router that chooses `top_k` of these layers once "
        "for a prompt",
        parameters="r (in + out), and for each block d (n + 1) + 12, n its adapted layers",
        bases=f"{_LINEAR}, in the blocks of a model without a separate encoder",
        implemented_by="kasatune",
        module="kasatune.methods.milora_moe",
        reconstructed=True,
        options=(
            Option("top_k", "integer", 1, "layers of a block chosen for a prompt; the paper has 1 and 3", low=1),
            Option(
                "pooling",
                "choice",
                "attention",
                "how the hidden states of a prompt become one vector",
                ("attention", "mean", "max", "last"),
            ),
            Option(
                "gate",
                "choice",
                "probability",
                "factor of a chosen layer: its probability; 1 with that gradient; or 1",
                ("probability", "straight-through", "hard"),
            ),
            Option("balance_weight", "number", 1e-2, "weight of the routers' load-balancing loss", low=0),
            Option(
                "activation_rate",
                "number",
                0.01,
                "factor on the learning rate of the routers' activations; 0 leaves them as they start",
                low=0,
            ),
            Option(
                "held_back",
                "number",
                0.0,
                "share of the training rows, and of the steps, that train the routers' activations alone; the other "
                "rows train the rest (bi-level); 0 trains all on all rows",
                low=0,
                high=0.5,
                written_if_set=True,
            ),
        ),
        merge=_NOT_MERGEABLE,
    ),
)

"""Bottleneck adapters: small nonlinear modules between the sublayers."""

from __future__ import annotations

from kasatune.methods.info import MethodInfo, Option

_KEYS = ("r", "dropout")
_BASES = "BERT, RoBERTa, ELECTRA, DeBERTa, DistilBERT, GPT-2, OPT, LLaMA, Mistral, Qwen, Gemma"
_MERGE = "an adapter is not linear: there is no weight that it could be added to"

ROWS = (
    MethodInfo(
        name="houlsby",
        title="Adapter (Houlsby)",
        paper="arXiv 1902.00751",
        trains="an adapter on the output of both sublayers of each block",
        bases=_BASES,
        implemented_by="kasatune",
        module="kasatune.methods.houlsby",
        uses=_KEYS,
        options=(Option("layer_norms", "flag", False, "train the LayerNorms of the blocks too, as the paper does"),),
        merge=_MERGE,
    ),
    MethodInfo(
        name="pfeiffer",
        title="Adapter (Pfeiffer)",
        paper="arXiv 2005.00247",
        trains="an adapter after the feed-forward sublayer of each block",
        bases=_BASES,
        implemented_by="kasatune",
        module="kasatune.methods.pfeiffer",
        uses=_KEYS,
        merge=_MERGE,
    ),
    MethodInfo(
        name="lin",
        title="Adapter (Lin)",
        paper="arXiv 2004.03829",
        trains="an adapter with a LayerNorm of its own on the output of each block",
        bases=_BASES,
        implemented_by="kasatune",
        module="kasatune.methods.lin",
        uses=_KEYS,
        merge=_MERGE,
    ),
    MethodInfo(
        name="adapterdrop",
        title="AdapterDrop",
        paper="arXiv 2010.11918",
        trains="an adapter after the feed-forward sublayer of each block but the first ones",
        bases=_BASES,
        implemented_by="kasatune",
        module="kasatune.methods.adapterdrop",
        uses=_KEYS,
        options=(
            Option("drop", "integer", 0, "blocks without an adapter, from the first on, after training", low=0),
            Option("sampled", "flag", True, "train with a number of dropped blocks drawn at each step; else with drop"),
        ),
        merge=_MERGE,
    ),
    MethodInfo(
        name="series-adapter",
        title="Series adapter",
        paper="arXiv 2304.01933",
        trains="an adapter on the output of the feed-forward sublayer's last projection",
        bases=_BASES,
        implemented_by="kasatune",
        module="kasatune.methods.series_adapter",
        uses=_KEYS,
        options=(Option("inputs", "flag", False, "adapt the inputs of the other projections of the sublayer too"),),
        merge=_MERGE,
    ),
    MethodInfo(
        name="parallel-adapter",
        title="Parallel adapter",
        paper="arXiv 2304.01933",
        trains="an adapter beside two projections of each feed-forward sublayer",
        bases=_BASES,
        implemented_by="kasatune",
        module="kasatune.methods.parallel_adapter",
        uses=_KEYS,
        merge=_MERGE,
    ),
)

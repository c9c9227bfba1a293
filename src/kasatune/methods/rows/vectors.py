"""Methods of PEFT that train vectors, shards or prefixes."""

from __future__ import annotations

from kasatune.methods.info import MethodInfo, Option

ROWS = (
    MethodInfo(
        name="vera",
        title="VeRA",
        paper="arXiv 2310.11454",
        trains="two vectors a layer, between random matrices that all layers share",
        bases="layers Linear and Conv1D",
        implemented_by="peft",
        module="kasatune.methods.vera",
        uses=("r", "dropout", "target_modules"),
        options=(
            Option("d_initial", "number", 0.1, "what the inner vector begins as", low=0, above=True),
            Option("projection_seed", "integer", 0, "the seed of the random matrices", low=0),
        ),
    ),
    MethodInfo(
        name="miss",
        title="MiSS",
        paper="arXiv 2409.15371",
        trains="one matrix of r rows a layer, which every group of r inputs shares",
        bases="layers Linear",
        implemented_by="peft",
        module="kasatune.methods.miss",
        uses=("r", "dropout", "target_modules"),
    ),
    MethodInfo(
        name="ia3",
        title="(IA)^3",
        paper="arXiv 2205.05638",
        trains="three vectors a block, which scale keys, values and the inner features of the feed-forward part",
        bases="architectures that PEFT knows the layers of",
        implemented_by="peft",
        module="kasatune.methods.ia3",
        uses=(),
    ),
    MethodInfo(
        name="prefix-tuning",
        title="Prefix tuning",
        paper="arXiv 2101.00190",
        trains="keys and values of a few positions before the input, in every block",
        bases="models that take past keys and values",
        implemented_by="peft",
        module="kasatune.methods.prefix_tuning",
        uses=(),
        options=(
            Option("virtual_tokens", "integer", 10, "the number of positions", low=1),
            Option("projection", "flag", False, "train the prefixes through a two-layer map"),
            Option("hidden_size", "integer", None, "the width of that map; null for the model's", low=1, optional=True),
        ),
        start="the random prefixes are attended to",
        merge="the prefixes are positions beside the input, no weights",
    ),
    MethodInfo(
        name="ln-tuning",
        title="LayerNorm tuning",
        paper="arXiv 2312.11420",
        trains="gain and shift of every normalisation",
        bases="models with LayerNorm or RMSNorm",
        implemented_by="peft",
        module="kasatune.methods.ln_tuning",
        uses=(),
    ),
)

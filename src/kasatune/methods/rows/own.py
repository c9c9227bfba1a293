"""Descendants of LoRA that PEFT lacks, and training of few layers at a time."""

from __future__ import annotations

from kasatune.methods.info import LORA_KEYS, MethodInfo, Option

_LINEAR = "layers Linear and Conv1D"
_SCALED = ("lora", "kasa", "rslora", "dora", "houlsby", "pfeiffer", "lin", "series-adapter", "parallel-adapter")

ROWS = (
    MethodInfo(
        name="dylora",
        title="DyLoRA",
        paper="arXiv 2210.07558",
        trains="A and B of the targeted layers, so that they can be cut to any rank up to r",
        bases=_LINEAR,
        implemented_by="kasatune",
        module="kasatune.methods.dylora",
        options=(
            Option("frozen", "flag", True, "a step trains the last of the drawn rows alone, as in the authors' runs"),
            Option("rank", "integer", None, "the rank to evaluate and save; null for r", low=1, optional=True),
        ),
    ),
    MethodInfo(
        name="sara",
        title="SARA",
        paper="arXiv 2408.03290",
        trains="A, B and a diagonal of the targeted layers, each of the rank that its weight's spectrum gives",
        bases=_LINEAR,
        implemented_by="kasatune",
        module="kasatune.methods.sara",
        reconstructed=True,
        uses=("alpha", "dropout", "use_rslora", "target_modules"),
        options=(
            Option("share", "number", 0.01, "of the sum of singular values, for the rank", low=0, high=1, above=True),
        ),
    ),
    MethodInfo(
        name="clora",
        title="CLoRA",
        paper="arXiv 2410.16801",
        trains="A and B of the targeted layers, pushed away from random subspaces",
        bases=_LINEAR,
        implemented_by="kasatune",
        module="kasatune.methods.clora",
        options=(
            Option("k", "integer", 256, "the dimension of the subspaces", low=1),
            Option("weight", "number", 1.0, "the coefficient of the subspace term", low=0),
        ),
    ),
    MethodInfo(
        name="lora-mini",
        title="LoRA-Mini",
        paper="arXiv 2411.15804",
        trains="the inner two of four matrices a targeted layer; the outer two are random",
        bases=_LINEAR,
        implemented_by="kasatune",
        module="kasatune.methods.lora_mini",
        reconstructed=True,
        options=(Option("inner", "integer", 64, "a and b, the widths within A and B", low=1),),
    ),
    MethodInfo(
        name="lora-xs",
        title="LoRA-XS",
        paper="arXiv 2405.17604",
        trains="one r x r matrix a targeted layer, between its leading singular vectors",
        bases=_LINEAR,
        implemented_by="kasatune",
        module="kasatune.methods.lora_xs",
        options=(Option("sigma", "number", 1e-5, "the standard deviation that R is drawn with", low=0),),
        start="R is drawn with the standard deviation sigma, 1e-5 by default",
    ),
    MethodInfo(
        name="ist",
        title="IST",
        paper="arXiv 2410.11772",
        trains="at each step the adapters of a few blocks, chosen by what switching others down did to the loss",
        bases="those of the method named by the option over, which also says how it starts and whether it merges",
        implemented_by="kasatune",
        module="kasatune.methods.ist",
        uses=(*LORA_KEYS, "convention", "core", "truncation", "beta", "gamma", "tails"),
        options=(
            Option("over", "choice", "lora", "the method whose adapters are trained", choices=_SCALED),
            Option("update_share", "number", 0.25, "blocks trained in a step, of all", low=0, high=1, above=True),
            Option("suppress_share", "number", 0.5, "blocks switched down in a trial", low=0, high=1, above=True),
            Option("suppression", "number", 0.25, "what their scaling is multiplied by", low=0, high=1),
            Option("interval", "integer", 10, "steps between two rounds of trials", low=1),
            Option("candidates", "integer", 3, "trials in a round", low=2),
            Option("rate", "number", 10.0, "the step of the scores", low=0),
            Option("rows", "integer", 16, "training rows that a trial computes the loss of", low=1),
            Option("random", "flag", False, "choose blocks at random, without scores: the paper's ablation"),
        ),
    ),
)

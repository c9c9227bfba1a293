"""Methods that train parameters which the model has already."""

from __future__ import annotations

from kasatune.methods.info import MethodInfo, Option

_OWN_WEIGHTS = "the base's own parameters are trained"

ROWS = (
    MethodInfo(
        name="full",
        title="Full fine-tuning",
        paper="none",
        trains="every weight",
        bases="any, not quantized",
        implemented_by="transformers",
        module="kasatune.methods.full",
        uses=(),
        disable=_OWN_WEIGHTS,
    ),
    MethodInfo(
        name="top-layers",
        title="Fine-tuning of the top layers",
        paper="arXiv 2101.00190",
        trains="every weight of the last blocks",
        bases="models with a list of blocks, not quantized",
        implemented_by="kasatune",
        module="kasatune.methods.top_layers",
        uses=(),
        options=(Option("layers", "integer", 2, "the number of blocks, counted from the top", low=1),),
        disable=_OWN_WEIGHTS,
    ),
    MethodInfo(
        name="head",
        title="Frozen model, fitted head",
        paper="none",
        trains="nothing but a linear head, fitted to convergence on the frozen model's features",
        bases="models with a sequence classification head",
        implemented_by="scikit-learn",
        module="kasatune.methods.head",
        uses=(),
        disable="nothing but the head is learnt",
        merge="its head is a module of its own",
        kinds=("classification", "regression"),
        unable="it fits a classifier to features, and a language model's head is already there",
    ),
    MethodInfo(
        name="bitfit",
        title="BitFit",
        paper="arXiv 2106.10199",
        trains="every bias that the model has",
        bases="models with biases",
        implemented_by="kasatune",
        module="kasatune.methods.bitfit",
        uses=(),
        disable=_OWN_WEIGHTS,
    ),
)

from __future__ import annotations

from typing import Any

from peft import PeftConfig

from kasatune.methods.bottleneck.method import BottleneckMethod
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.table import METHODS


class SeriesAdapter(BottleneckMethod):
    """h <- h + W_up tanh(W_down h) on the output h of the projection out of the feed-forward sublayer; no biases.

    With `inputs`, each of the sublayer's other projections also gets one on its input: x <- x + W_up tanh(W_down x).
    Trained parameters: 2 L d r; LLaMA-7B with r = 256: 67,108,864, the 0.99 % of the LLM-Adapters paper's tables.

    Not specified by the source, chosen here: W_up = 0 at the start, so that training starts from the base's outputs
    (the authors' code draws both from N(0, 0.02^2)); `inputs` false, because the published share of parameters fits
    only one adapter in each block (the default of their code adds those on the inputs).

    Source: Hu et al., arXiv 2304.01933; computed by kasatune.
    """

    info = METHODS["series-adapter"]
    kind = "series"
    activation = "tanh"
    has_bias = False

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """See `BottleneckMethod.config`."""
        kind = "series-inputs" if settings.options["inputs"] else self.kind
        return super().config(settings, targets, {**common, "kind": kind})


METHOD = SeriesAdapter()

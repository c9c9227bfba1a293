from __future__ import annotations

from typing import Any

from peft import PeftConfig

from kasatune.methods.bottleneck.method import BottleneckMethod
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.table import METHODS


class SeriesAdapter(BottleneckMethod):
    """h <- h + W_up tanh(W_down h) on the output h of the projection out of the feed-forward sublayer; no biases.

    With `inputs`, the other projections of the sublayer get one each too, on their input: x <- x + W_up tanh(W_down x).
    Trained parameters: 2 L d r; LLaMA-7B with r = 256: 67,108,864, the 0.99 % of the LLM-Adapters paper's tables.

    Open in the source, chosen here: W_up = 0 at the start where the code draws both from N(0, 0.02^2), so that training
    begins as the base; without `inputs`, because the published share of parameters leaves room for one adapter a block
    alone (the code's default adds those of the inputs).

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

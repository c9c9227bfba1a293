from __future__ import annotations

from kasatune.methods.bottleneck.method import BottleneckMethod
from kasatune.methods.table import METHODS


class ParallelAdapter(BottleneckMethod):
    """y = W x + W_up tanh(W_down drop(x)) on two projections of the feed-forward sublayer; no biases, scaling 1.

    The two are the last projection into the sublayer (`up_proj`) and the one out of it (`down_proj`). Trained
    parameters: 2 L r (d + d_ff); LLaMA-7B with r = 256: 247,463,936, the 3.54 % of the LLM-Adapters paper's tables.

    Not specified by the source, chosen here: W_up = 0 at the start, so that training starts from the base's outputs
    (the authors' code draws both from N(0, 0.02^2)); the two projections, which follow from the published share of
    parameters.

    Source: Hu et al., arXiv 2304.01933; computed by kasatune.
    """

    info = METHODS["parallel-adapter"]
    kind = "parallel"
    activation = "tanh"
    has_bias = False


METHOD = ParallelAdapter()

from __future__ import annotations

from kasatune.methods.bottleneck.method import BottleneckMethod
from kasatune.methods.table import METHODS


class Pfeiffer(BottleneckMethod):
    """LN(z + W_up relu(W_down LN(z) + b_down) + b_up), z = x + FFN(x): one adapter a block, within its last LayerNorm.

    Where LayerNorms come first (GPT-2, LLaMA) there is none to lie within: z <- z + g(z) on the block's output z. Both
    are what AdapterHub makes of the paper (`SeqBnConfig`). Trained parameters: L (2 d r + r + d).

    Open in the source, chosen here: W_up = 0 at the start, so that training begins as the base.

    Source: Pfeiffer et al., arXiv 2005.00247; computed by kasatune.
    """

    info = METHODS["pfeiffer"]
    kind = "pfeiffer"


METHOD = Pfeiffer()

from __future__ import annotations

from kasatune.methods.bottleneck.method import BottleneckMethod
from kasatune.methods.table import METHODS


class Pfeiffer(BottleneckMethod):
    """LN(z + W_up relu(W_down LN(z) + b_down) + b_up), z = x + FFN(x): one adapter a block, inside its last LayerNorm.

    If LayerNorms come before the sublayers (GPT-2, LLaMA), the adapter acts on the block's output z: z <- z + g(z).
    Both follow AdapterHub's implementation of the paper (`SeqBnConfig`). Trained parameters: L (2 d r + r + d).

    Not specified by the source, chosen here: W_up = 0 at the start, so that training starts from the base's outputs.

    Source: Pfeiffer et al., arXiv 2005.00247; computed by kasatune.
    """

    info = METHODS["pfeiffer"]
    kind = "pfeiffer"


METHOD = Pfeiffer()

from __future__ import annotations

from kasatune.methods.bottleneck.method import BottleneckMethod
from kasatune.methods.table import METHODS


class Lin(BottleneckMethod):
    """H <- H + W_up relu(W_down LN(H) + b_down) + b_up on the output H of every block; LN belongs to the adapter.

    Trained parameters: L (2 d r + r + d) + 2 L d. GPT-2 medium: 368,784 with r = 6 and 11,089,152 with r = 224, the
    0.37M and 11.09M of the LoRA paper's table 3.

    Not specified by the source, chosen here: W_up = 0 at the start, so that training starts from the base's outputs; LN
    starts with weight 1 and bias 0. The biases are in the authors' code but not in the paper's equation.

    Source: Lin, Madotto, Fung, arXiv 2004.03829, section 2; computed by kasatune.
    """

    info = METHODS["lin"]
    kind = "lin"
    layer_norm = True


METHOD = Lin()

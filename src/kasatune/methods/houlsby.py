from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import nn

from kasatune.methods.bottleneck.method import BottleneckMethod
from kasatune.methods.bottleneck.places import block_index
from kasatune.methods.shared.method import MethodSettings, TaskKind
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Houlsby(BottleneckMethod):
    """h <- h + W_up gelu(W_down h + b_down) + b_up on the output h of both sublayers, before the residual connection.

    Trained parameters: 2 L (2 d r + r + d) for L blocks of width d, plus 2 d for each LayerNorm with `layer_norms`.

    Not specified by the source, chosen here: W_up = 0 at the start, so that training starts from the base's outputs
    (the authors draw both projections from a narrow normal distribution); gelu, as in the authors' code (the paper says
    "a nonlinearity"); LayerNorms are frozen unless `layer_norms` is true (the paper trains them, but the tables of the
    LoRA and KaSA papers count without them).

    Source: Houlsby et al., arXiv 1902.00751, figure 2; computed by kasatune.
    """

    info = METHODS["houlsby"]
    kind = "houlsby"
    activation = "gelu"

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`; LayerNorms are trained as copies, so that switching off restores the base's."""
        norms = _norms(model) if settings.options["layer_norms"] else ()
        return super().attach(model, settings, kind, [*new_modules, *norms])


def _norms(model: nn.Module) -> Iterator[str]:
    """Names of the normalizations within the blocks."""
    for name, module in model.named_modules():
        if block_index(name) is not None and type(module).__name__.endswith(("LayerNorm", "RMSNorm")):
            yield name


METHOD = Houlsby()

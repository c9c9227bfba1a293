"""OSF, orthogonal subspace fine-tuning: train the smaller singular triplets of every weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peft import OSFConfig, PeftConfig
from peft.tuners.osf import OSFLayer
from torch import nn

from kasatune.errors import ModelError
from kasatune.methods.shared.method import MethodSettings, TaskKind
from kasatune.methods.shared.peft_adapter import AdapterMethod, targeted_layers
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Osf(AdapterMethod):
    """W = U S Vh, y = U_high S_high Vh_high x + U_low S_low Vh_low x: U_low, S_low and Vh_low are trained.

    "High" are the `preserved` share of the singular triplets, the largest first. Gradients of U_low and Vh_low are
    projected to be orthogonal to U_high and Vh_high. The trained rank is (1 - `preserved`) min(out, in), far above that
    of a LoRA unless `preserved` is close to 1; `r` and `alpha` are not used.

    The adapter holds U_low, S_low and Vh_low; the untouched base is decomposed again where it is loaded.

    Source: Nayak et al., arXiv 2504.07097; computed by PEFT.
    """

    info = METHODS["osf"]

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """PEFT's OSFConfig."""
        return OSFConfig(effective_rank=settings.options["preserved"], target_modules=targets, **common)

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`.

        Raises:
            ModelError: a target is no Linear layer, which PEFT would pass over.
        """
        wrapped = super().attach(model, settings, kind, new_modules)
        for name in targeted_layers(wrapped):
            layer = wrapped.get_submodule(f"base_model.model.{name}")
            if not isinstance(layer, OSFLayer):
                raise ModelError(
                    f"method 'osf' adapts Linear layers, and {name} is a {type(layer).__name__}; leave it out of "
                    "method.target_modules, or choose another method"
                )
        return wrapped


METHOD = Osf()

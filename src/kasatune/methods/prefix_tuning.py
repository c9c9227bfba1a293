from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from peft import PeftConfig, PrefixTuningConfig
from peft.utils import ModulesToSaveWrapper
from torch import nn

from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.peft_adapter import AdapterMethod, as_peft_model
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PrefixTuning(AdapterMethod):
    """Attention over [P_k; k] and [P_v; v]: n trained keys and values in every block, before those of the input.

    With `projection`, P = MLP(E) with a trained embedding E and a trained two-layer MLP, as in the paper; without it, P
    itself is trained.

    Source: Li, Liang, arXiv 2101.00190; computed by PEFT.
    """

    info = METHODS["prefix-tuning"]

    def targets(self, model: PreTrainedModel, settings: MethodSettings) -> None:
        """None: no layers are adapted."""
        return

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """PEFT's PrefixTuningConfig."""
        options = settings.options
        return PrefixTuningConfig(
            num_virtual_tokens=options["virtual_tokens"],
            prefix_projection=options["projection"],
            encoder_hidden_size=options["hidden_size"],
            **common,
        )

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        """See `Method.disabled`; PEFT's own context manager fails on models that cannot generate."""
        return _without_prefix(model)


@contextmanager
def _without_prefix(model: nn.Module) -> Generator[None]:
    trained = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    for module in trained:
        module.enable_adapters(False)
    model.forward = as_peft_model(model).base_model.forward
    try:
        yield
    finally:
        del model.forward  # removes the instance attribute, so that the class's method is used again
        for module in trained:
            module.enable_adapters(True)


METHOD = PrefixTuning()

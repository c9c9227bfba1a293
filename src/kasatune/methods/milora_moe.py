from __future__ import annotations

from typing import Any

from peft import PeftConfig

from kasatune.errors import InputError
from kasatune.methods.shared.method import MethodSettings
from kasatune.methods.shared.mixture import MixtureMethod, lora_fields
from kasatune.methods.table import METHODS
from kasatune.mixtures.config import MiloraMoeConfig


class MiloraMoe(MixtureMethod):
    """y = W x + s w_m(prompt) B A x: the adapted layers of a block are experts, and `top_k` act for a prompt.

    s = alpha / r; w = softmax(W_r g(pool(H))) of the chosen layers, H the hidden states of the prompt before the block,
    g a learnt rational activation. The decision is made once for a prompt and kept while the answer is written; layers
    that no row of a batch chooses are not computed. Rows cannot be packed. On all layers of LLaMA-2-7B with r = 32:
    79,953,920 in A and B, 917,504 in W_r, 131,072 in the pooling, 384 in g. Not the `milora` that trains minor singular
    components.

    Reconstructed: no code of the authors was found, and the paper contradicts itself about the number of layers that
    are chosen. Chosen here: `top_k` = 1 (3 by option); the probability as factor of the update, which its equations
    lack, because without it no gradient of the task reaches the router (`gate` has the other readings); g within 0.04
    of GELU on [-3, 3] at the start; the rate of its coefficients is 1/100 of the learning rate, the ratio of the
    paper's rates; they are trained with the rest, or by the paper's two-level scheme: with `held_back` = 0.5 every
    second step trains them on held-back rows, and leaves the rest as it is; the prompt is what comes before the first
    learnt token.

    Source: Zhang et al., arXiv 2410.18035; computed by kasatune.
    """

    info = METHODS["milora-moe"]

    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """The MiloraMoeConfig of this package.

        Raises:
            InputError: rows are held back for activations that are not trained.
        """
        options = settings.options
        if options["held_back"] and not options["activation_rate"]:
            raise InputError(
                f"method.options.held_back: {options['held_back']:g} received with activation_rate: 0, which leaves "
                "the activations as they start, so nothing would be trained on held-back rows; set one of them"
            )
        own = {name: settings.options[name] for name in ("top_k", "pooling", "gate", "balance_weight")}
        return MiloraMoeConfig(**{**lora_fields(settings, targets), **own, **common})

    def learning_rate_factor(self, name: str, settings: MethodSettings) -> float:
        """The option `activation_rate` for the coefficients of g."""
        return settings.options["activation_rate"] if self.is_outer(name) else 1.0

    def held_back(self, settings: MethodSettings) -> float:
        """The option `held_back`."""
        return settings.options["held_back"]

    def is_outer(self, name: str) -> bool:
        """The coefficients of g are outer parameters."""
        return any(part in name for part in ("mixture_numerator", "mixture_denominator"))

    def reads_parameters_in_training(self, settings: MethodSettings) -> bool:
        """Bi-level training drops gradients between backward pass and step, where ZeRO-3 has partitioned them."""
        return bool(settings.options["held_back"])


METHOD = MiloraMoe()

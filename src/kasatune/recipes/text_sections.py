"""The sections of recipes that generate text: decoding (`generation`) and the loss of preference (`preference`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from kasatune.recipes.section import Count, Fraction, Rate, Section, as_integer


class GenerationSection(Section):
    """Decoding when text is scored after training: greedy search or beam search, never sampling.

    Tasks that generate text may have their own defaults.
    """

    max_new_tokens: Count = Field(64, description="Longest generated text, in tokens.")
    num_beams: Count = Field(1, description="Beams of the beam search; 1 is greedy search.")
    length_penalty: Annotated[float, Field(ge=-10, le=10)] = Field(
        1.0, description="Exponent p in a beam's score, its summed log-probability over its length^p; -10 to 10."
    )
    no_repeat_ngram_size: Annotated[int, Field(ge=0), BeforeValidator(as_integer)] = Field(
        0, description="An n-gram of this many generated tokens occurs at most once. 0: no limit."
    )


PreferenceLoss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]


class PreferenceSection(Section):
    """The loss of the task preference: DPO, or one of the published variants that TRL's DPOTrainer has."""

    loss: PreferenceLoss | Annotated[list[PreferenceLoss], Field(min_length=1)] = Field(
        "sigmoid",
        description="Loss, or a list of losses whose weighted sum is minimized: sigmoid (DPO), hinge (SLiC, RSO), ipo, "
        "exo_pair, nca_pair, robust, bco_pair, sppo_hard, aot, aot_unpaired, apo_zero, apo_down, discopop, sft (of the "
        "chosen answer) and sigmoid_norm (rewards divided by the length of the answer).",
    )
    loss_weights: Annotated[list[Rate], Field(min_length=1)] | None = Field(
        None, description="Weight of each loss in a list. null: 1 each."
    )
    beta: Annotated[float, Field(gt=0)] = Field(
        0.1, description="How strongly the model is held to its reference, above 0; the tau of ipo."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0,
        description="Probability that a pair is labelled the wrong way round, at least 0 and below 0.5; read by "
        "robust, exo_pair, which needs it (1e-3 in its paper), aot and aot_unpaired.",
    )
    divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = Field(
        "reverse_kl", description="Divergence from the reference (f-DPO)."
    )
    alpha_coefficient: Annotated[float, Field(gt=0)] = Field(
        0.5, description="Coefficient of alpha_divergence, above 0; other divergences do not read it."
    )
    discopop_tau: Annotated[float, Field(gt=0)] = Field(
        0.05, description="Temperature of discopop, above 0; other losses do not read it."
    )
    ld_alpha: Fraction | None = Field(
        None,
        description="Weight of the tokens of an answer beyond the length of the shorter answer, 0 to 1 (LD-DPO). null: "
        "1.",
    )
    weighting: bool = Field(False, description="Weight each pair by its probability under the model (WPO).")

    @property
    def losses(self) -> list[PreferenceLoss]:
        """The losses of `loss`, one or several."""
        return list(self.loss) if isinstance(self.loss, list) else [self.loss]

"""Configurations of the mixtures of LoRA experts, one PEFT configuration class for each method."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft.config import PeftConfig
from peft.utils import PeftType

from kasatune.errors import InputError
from kasatune.kasa.unknown_settings import refuse_unknown_settings

NOT_IN_A_MIXTURE = {
    "rank_pattern": "all experts of a mixture have the rank r",
    "alpha_pattern": "all layers of a mixture have the scaling of lora_alpha",
    "bias": "biases of the base stay frozen",
    "init_lora_weights": "a mixture starts with B = 0, at the base's outputs",
    "target_parameters": "a mixture is put on linear layers, not on parameters such as stacked experts",
}


MIXTURE_TYPES = ("MOE_LORA", "MOR", "MALORA", "MILORA_MOE")
"""The PEFT types of the mixtures."""
POOLINGS = ("attention", "mean", "max", "last")
GATES = ("probability", "straight-through", "hard")


@dataclass
class MixtureConfig(PeftConfig):
    """Settings that all mixtures share; use one of the subclasses.

    Args:
        r: rank of an expert.
        lora_alpha: numerator of the scaling s = lora_alpha / r.
        lora_dropout: dropout on the input of the experts; the router reads its input without dropout.
        use_rslora: s = lora_alpha / sqrt(r).
        target_modules: names or suffixes, a regular expression, "all-linear", or None for the model type's default.
        exclude_modules: names, suffixes or a regular expression to leave out.
        modules_to_save: modules that are trained and saved in full, such as a new head.
        layers_to_transform: indices of the blocks to adapt; None for all.
        layers_pattern: name of the list of blocks, if it cannot be guessed.

    Raises:
        InputError: a value is out of its range; the message names the field, the value and the limit.
        UnknownSettingError: a setting of this name does not exist.
    """

    r: int = field(default=8)
    lora_alpha: float = field(default=16)
    lora_dropout: float = field(default=0.0)
    use_rslora: bool = field(default=False)
    target_modules: list[str] | set[str] | str | None = field(default=None)
    exclude_modules: list[str] | set[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)

    TYPE: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType(self.TYPE)
        if isinstance(self.target_modules, list | tuple):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list | tuple):
            self.exclude_modules = set(self.exclude_modules)
        faults = list(self.faults())
        if faults:
            raise InputError(f"{type(self).__name__}: " + "; ".join(faults))

    def faults(self) -> Iterator[str]:
        """One message for every value out of its range."""
        yield from whole_number(self, "r")
        if not is_number(self.lora_alpha) or self.lora_alpha <= 0:
            yield f"lora_alpha must be a number above 0, got {self.lora_alpha!r}"
        if not is_number(self.lora_dropout) or not 0 <= self.lora_dropout < 1:
            yield f"lora_dropout must be at least 0 and below 1, got {self.lora_dropout!r}"
        if self.layers_pattern is not None and self.layers_to_transform is None:
            yield "layers_pattern needs layers_to_transform: give the indices, or leave both out"
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear" and self.layers_to_transform:
            yield "layers_to_transform needs target_modules as a list, got a regular expression: put it in there"

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, in an order that does not depend on the hash seed."""
        return {key: sorted(value) if isinstance(value, set) else value for key, value in super().to_dict().items()}

    @property
    def scaling(self) -> float:
        """S, the factor of the update."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


@dataclass
class TopKConfig(MixtureConfig):
    """Settings of the mixtures whose router chooses some of the experts.

    Args:
        num_experts: N, the number of experts of a layer.
        top_k: number of experts that are chosen for a token, at most N.
        balance_weight: weight of the balance loss N sum_i f_i P_i, a mean over the routers (mixtures/balance.py); 0 to
            switch it off.
    """

    num_experts: int = field(default=8)
    top_k: int = field(default=2)
    balance_weight: float = field(default=1e-2)

    def faults(self) -> Iterator[str]:
        """See `MixtureConfig.faults`."""
        yield from super().faults()
        yield from whole_number(self, "num_experts", 2)
        yield from whole_number(self, "top_k")
        if is_whole(self.num_experts) and is_whole(self.top_k) and self.top_k > self.num_experts:
            yield (
                f"top_k {self.top_k} is more than num_experts = {self.num_experts}: lower top_k or raise num_experts"
            )
        yield from at_least_zero(self, "balance_weight")


@refuse_unknown_settings(NOT_IN_A_MIXTURE)
@dataclass
class MoeLoraConfig(TopKConfig):
    """y = W x + s sum_i w_i(x) B_i A_i x over the top_k experts of each token (MoE-LoRA); see `TopKConfig`.

    w = softmax(W_g x) of the chosen experts, divided by its sum if top_k > 1; 0 for the others.
    """

    TYPE: ClassVar[str] = "MOE_LORA"


@refuse_unknown_settings({**NOT_IN_A_MIXTURE, "top_k": "the router of MoR weights all experts"})
@dataclass
class MorConfig(MixtureConfig):
    """y = W x + s sum_i G_i(x) diag(lamB_i) B diag(lamA_i) A x, G = softmax(W_g x) (MoR, arXiv 2410.13408).

    Args:
        num_experts: N, the number of rescalings (lamA_i, lamB_i) of the shared A and B.
    """

    TYPE: ClassVar[str] = "MOR"

    num_experts: int = field(default=8)

    def faults(self) -> Iterator[str]:
        """See `MixtureConfig.faults`."""
        yield from super().faults()
        yield from whole_number(self, "num_experts", 2)


@refuse_unknown_settings(NOT_IN_A_MIXTURE)
@dataclass
class MaloraConfig(TopKConfig):
    """y = W x + s sum_i w_i(x) B_i P_i S_A x over the top_k experts of each token (MALoRA, arXiv 2410.22782).

    S_A (d, in) is shared by the experts of a layer, P_i is (rbar, d), B_i (out, rbar); d = r and s = lora_alpha / r.

    Args:
        up_rank: rbar, at least r; None for 9/8 r, rounded up, which trains a third less than MoE-LoRA of rank r.
        train_shared: S_A is trained; False keeps its initial value.
        balance_weight: as in `TopKConfig`.
    """

    TYPE: ClassVar[str] = "MALORA"

    up_rank: int | None = field(default=None)
    train_shared: bool = field(default=True)
    balance_weight: float = field(default=1e-3)

    def faults(self) -> Iterator[str]:
        """See `MixtureConfig.faults`."""
        yield from super().faults()
        if self.up_rank is not None and is_whole(self.r) and (not is_whole(self.up_rank) or self.up_rank < self.r):
            yield f"up_rank must be a whole number of at least r = {self.r}, or None for 9/8 r, got {self.up_rank!r}"

    @property
    def wide_rank(self) -> int:
        """Rbar."""
        return -(-9 * self.r // 8) if self.up_rank is None else self.up_rank


@refuse_unknown_settings({**NOT_IN_A_MIXTURE, "num_experts": "the experts are the adapted layers of a block"})
@dataclass
class MiloraMoeConfig(MixtureConfig):
    """y = W x + s w_m(prompt) B A x: the adapted layers of a block are experts, chosen once for a prompt (MiLoRA).

    MiLoRA as a mixture (arXiv 2410.18035), not the method of the same name that trains minor singular components.
    w = softmax(W_r g(pool(H))) of the top_k layers, H the hidden states of the prompt before the block; 0 elsewhere.

    Args:
        top_k: number of layers of each block that are chosen for a prompt, at most those that are adapted; 1, or 3 as
            in the paper's largest runs.
        pooling: "attention", "mean", "max" or "last": how the hidden states of a prompt become one vector.
        gate: the factor of a chosen layer's update: "probability", w; "straight-through", 1 with the gradient of w;
            "hard", 1, so that the balance loss alone trains the router.
        balance_weight: weight of the balance loss N sum_i f_i P_i, a mean over the blocks; 0 to switch it off.
    """

    TYPE: ClassVar[str] = "MILORA_MOE"

    top_k: int = field(default=1)
    pooling: str = field(default="attention")
    gate: str = field(default="probability")
    balance_weight: float = field(default=1e-2)

    def faults(self) -> Iterator[str]:
        """See `MixtureConfig.faults`."""
        yield from super().faults()
        yield from whole_number(self, "top_k")
        yield from at_least_zero(self, "balance_weight")
        for name, choices in (("pooling", POOLINGS), ("gate", GATES)):
            if getattr(self, name) not in choices:
                yield f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
        if self.gate == "hard" and self.balance_weight == 0:
            yield "gate='hard' with balance_weight=0 leaves the router without a gradient: change one of them"


def whole_number(config: MixtureConfig, name: str, low: int = 1) -> Iterator[str]:
    """A message if the field is no whole number of at least `low`."""
    value = getattr(config, name)
    if not is_whole(value) or value < low:
        yield f"{name} must be a whole number of at least {low}, got {value!r}"


def at_least_zero(config: MixtureConfig, name: str) -> Iterator[str]:
    """A message if the field is no number of at least 0."""
    value = getattr(config, name)
    if not is_number(value) or value < 0:
        yield f"{name} must be a number of at least 0, got {value!r}"


def is_whole(value: object) -> bool:
    """Whether a value is an int and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

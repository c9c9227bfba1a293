"""KasaConfig, the configuration of a KaSA adapter, and LayerSettings, what it means for one layer."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peft.config import PeftConfig
from peft.utils import PeftType

from kasatune.errors import InputError
from kasatune.kasa.functional import Convention, Core
from kasatune.kasa.unknown_settings import LORA_ONLY, refuse_unknown_settings

if TYPE_CHECKING:
    from kasatune.kasa.truncation.measure_activations import Activations

CHOICES = {
    "convention": ("paper", "authors"),
    "core": ("diagonal", "dense"),
    "penalty": ("step", "loss", "none"),
    "truncation": ("attach", "fold"),
    "tail_source": ("auto", "checkpoint", "dequantized"),
    "truncate_by": ("magnitude", "activation", "sensitivity"),
    "sigma_init": ("normal", "one"),
}

_LEFT_OUT_AT_DEFAULT = {
    "truncate_by": "magnitude",
    "drop": None,
    "protect": 0.0,
    "sigma_init": "normal",
    "orthonormal": False,
    "calibration_used": None,
}
"""Fields that adapter_config.json states only where they differ from KaSA as published."""


@refuse_unknown_settings(LORA_ONLY)
@dataclass
class KasaConfig(PeftConfig):
    """W' = W - tail_d(W) + s B diag(sigma) A, trained with beta sum(sigma^2) + gamma (||A A^T - I|| + ||B^T B - I||).

    KaSA (arXiv 2412.06071, Eq. 9-12): the d smallest singular triplets of W are dropped, d = r, and an update in the
    form of a singular value decomposition is trained in their place, s = lora_alpha / r. Fields shared with LoraConfig
    keep their meaning.

    Args:
        r: rank of the update and number of singular triplets dropped; less than min(out, in) of every layer.
        lora_alpha: numerator of the scaling s.
        lora_dropout: dropout on the input of A only, never on the tail.
        use_rslora: s = lora_alpha / sqrt(r).
        target_modules: names or suffixes, a regular expression, "all-linear", or None for the model type's default.
        exclude_modules: names, suffixes or a regular expression to leave out.
        modules_to_save: modules that are trained and saved in full, such as a new head.
        layers_to_transform: indices of the blocks to adapt; None for all.
        layers_pattern: name of the list of blocks, if it cannot be guessed.
        beta: weight of sum(sigma^2).
        gamma: weight of the orthogonality term.
        convention: "paper", or "authors" for the reading of the released code (docs/deviations.md).
        core: "diagonal" (sigma holds r values) or "dense" (r x r, starts diagonal).
        penalty: "step" adds its gradient once per optimizer step; "loss" leaves it to `regularization(model)`;
            "none" switches it off.
        truncation: "attach" stores the tail next to W; "fold" subtracts it from a float W and keeps the original.
        tail_source: for quantized bases, what the tail is computed from: the full-precision "checkpoint", the
            "dequantized" weight, or "auto": the checkpoint if it is available and is what was quantized.
        tail_checkpoint: folder or hub name (in this machine's cache) of the full-precision checkpoint; None for the
            one that the base was loaded from.
        tail_source_used: set when the adapter is created on a quantized base: "checkpoint" or "dequantized", or a
            mapping of layer names to these if they differ; None on a float base.
        tails: directory written by `kasatune decompose`, with the same `truncate_by`, and the same or, by magnitude, a
            higher rank, to read the tails from. Not saved.
        truncate_by: which component T of rank d is dropped: "magnitude", the d smallest singular triplets (the paper);
            "activation", the component with the smallest E||T x||^2 over the base's activations
            (linalg/activation_tail.py); or "sensitivity", at most d triplets of those that activations use least, whose
            removal lowers the loss on labelled rows (truncation/choose_by_sensitivity.py), possibly none. The
            activations are those of `calibrate(base, config, batches)`, which "sensitivity" requires; without it the
            base model calibrates itself when the adapter is created.
        drop: d, the number of triplets dropped, 0 or more; None for r.
        protect: share of the input directions of each layer, those with the strongest activations, that A may not
            use: A <- A - (A K) K^T when the adapter is created and after each optimizer step, K (in, c) the leading
            eigenvectors of E[x x^T], c = ceil(protect in) (kasa/protection.py). 0 to switch it off. Activations are
            measured as for truncate_by="activation".
        sigma_init: "normal", sigma ~ N(0, 1) (the paper), or "one", sigma = 1, with which B diag(sigma) A starts as a
            LoRA does.
        orthonormal: True starts with random orthonormal A and B and sigma = 0, and makes A and B orthonormal again
            after each optimizer step (kasa/orthonormal.py). s = (lora_alpha / r) ||W||_F / sqrt(min(out, in)), which
            `alpha_pattern` states by layer once the adapter is created; the gamma term is left out.
        calibration_used: set when the adapter is created with truncate_by other than "magnitude", or protect: where
            the activations came from, the number of tokens, the seed, and by layer the eigenvalues at the cut and the
            protected directions; for "sensitivity" also the held-back losses by the number of triplets removed.
        rank_pattern: r by layer name or regular expression.
        alpha_pattern: lora_alpha by layer name or regular expression.
        bias: "none", "all" or "lora_only": which biases are trained.
        fan_in_fan_out: accepted for compatibility with LoraConfig; the layout is read from each layer.
        base_fingerprint: a sketch of every adapted weight, set when the adapter is created (weights/fingerprint.py).
        check_base: False loads an adapter on another base than it was trained on, with a warning. Not saved.

    Attributes:
        saved: whether the configuration was read from a saved adapter (its file states `inference_mode` and the
            fingerprint): its tails may be about to be loaded, so they are decomposed only when needed.
        activations: what `calibrate` measured, or None. Kept by `copy.deepcopy`, not saved.
        calibrated_as: identity of the activations of an attached adapter, whose configuration does not hold them.
        given_alphas: `alpha_pattern` as it was given; `orthonormal` writes the scaled values into `alpha_pattern`.
        calibrate_later: leave out what depends on activations when the adapter is created; `calibrate_adapter` adds it.

    Raises:
        InputError: a value out of its range; the message names the field, the value and the limit.
        UnknownSettingError: a setting of LoraConfig that KasaConfig does not have, or a name that is unknown.
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
    beta: float = field(default=1e-4)
    gamma: float = field(default=1e-3)
    convention: Convention = field(default="paper")
    core: Core = field(default="diagonal")
    penalty: str = field(default="step")
    truncation: str = field(default="attach")
    tail_source: str = field(default="auto")
    tail_checkpoint: str | None = field(default=None)
    tail_source_used: str | dict[str, str] | None = field(default=None)
    tails: str | None = field(default=None)
    truncate_by: str = field(default="magnitude")
    drop: int | None = field(default=None)
    protect: float = field(default=0.0)
    sigma_init: str = field(default="normal")
    orthonormal: bool = field(default=False)
    calibration_used: dict[str, Any] | None = field(default=None)
    rank_pattern: dict[str, int] = field(default=None)  # pyright: ignore[reportAssignmentType]
    alpha_pattern: dict[str, float] = field(default=None)  # pyright: ignore[reportAssignmentType]
    bias: str = field(default="none")
    fan_in_fan_out: bool = field(default=False)
    base_fingerprint: dict[str, Any] | None = field(default=None)
    check_base: bool = field(default=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("KASA")
        self.activations: Activations | None = None
        self.calibrated_as: str | None = None
        self.calibrate_later = False
        self.saved = self.inference_mode or self.base_fingerprint is not None
        self.rank_pattern = self.rank_pattern or {}
        self.alpha_pattern = self.alpha_pattern or {}
        self.given_alphas = dict(self.alpha_pattern)
        if isinstance(self.target_modules, list | tuple):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list | tuple):
            self.exclude_modules = set(self.exclude_modules)
        faults = _faults(self)
        if faults:
            raise InputError("KasaConfig: " + "; ".join(faults))

    @classmethod
    def akasa(cls, *, protect: float = 0.02, drop: int = 0, **settings: Any) -> KasaConfig:
        """The configuration of aKaSA: A stays out of the strongest input directions, and sigma starts at 1.

        Nothing is dropped, or with `drop` = d the component of rank d that activations use least. The adapter trains
        as the method `akasa` of a recipe does (docs/concepts.md).

        Args:
            protect: share of the input directions that A may not use.
            drop: number of triplets dropped.
            settings: any other field.

        Raises:
            InputError: as for KasaConfig.
        """
        values: dict[str, Any] = {"truncate_by": "activation", "sigma_init": "one", **settings}
        return cls(protect=protect, drop=drop, **values)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, in an order that does not depend on the hash seed."""
        values = super().to_dict()
        del values["check_base"], values["tails"]
        for name, default in _LEFT_OUT_AT_DEFAULT.items():
            if values[name] == default:
                del values[name]
        return {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}

    @property
    def needs_activations(self) -> bool:
        """Whether creating the adapter depends on activations of the base that must be measured."""
        return (self.truncate_by != "magnitude" and self.tails is None) or self.protect > 0


@dataclass(frozen=True)
class LayerSettings:
    """The settings of one adapter in one layer.

    Args:
        r: rank of the update.
        scaling: s, the factor of the update.
        drop: d, the number of singular triplets dropped: r, or fewer in the convention "authors", or KasaConfig.drop.
        tail_width: rows of kasa_tail_V: KasaConfig.drop, or r; those past `drop` are zero.
        protect: c, the number of input directions that A may not use.
        sigma_init: as in KasaConfig.
        orthonormal: as in KasaConfig.
        truncate_by: as in KasaConfig.
        convention: as in KasaConfig.
        core: as in KasaConfig.
        beta: as in KasaConfig.
        gamma: as in KasaConfig.
        penalty: as in KasaConfig.
        truncation: as in KasaConfig.
        tail_source: as in KasaConfig.
        layer_count: number of layers of the adapter in the model; the convention "authors" divides by it.
    """

    r: int
    scaling: float
    drop: int
    tail_width: int
    protect: int
    sigma_init: str
    orthonormal: bool
    truncate_by: str
    convention: Convention
    core: Core
    beta: float
    gamma: float
    penalty: str
    truncation: str
    tail_source: str
    layer_count: int = 1

    def counted(self, layer_count: int) -> LayerSettings:
        """These settings in an adapter of `layer_count` layers."""
        return dataclasses.replace(self, layer_count=layer_count)


def require_kasa_config(config: object) -> KasaConfig:
    """The configuration, if it is a kasatune.KasaConfig.

    Raises:
        InputError: it is another object, such as peft.KasaConfig, which is an option of peft.LoraConfig.
    """
    if isinstance(config, KasaConfig):
        return config
    kind = f"{type(config).__module__.partition('.')[0]}.{type(config).__name__}"
    namesake = kind == "peft.KasaConfig"
    about = ", an option of peft.LoraConfig that trains PEFT's own KaSA," if namesake else ""
    raise InputError(f"{kind}{about} was passed as the adapter's configuration. Use `from kasatune import KasaConfig`.")


def _faults(config: KasaConfig) -> list[str]:
    faults: list[str] = []
    for name, r in {"r": config.r, **{f"rank_pattern[{k!r}]": v for k, v in config.rank_pattern.items()}}.items():
        if not isinstance(r, int) or isinstance(r, bool) or r < 1:
            faults.append(f"{name} must be a whole number of at least 1, got {r!r}")
    for name, alpha in {
        "lora_alpha": config.lora_alpha,
        **{f"alpha_pattern[{k!r}]": v for k, v in config.alpha_pattern.items()},
    }.items():
        if not _is_number(alpha) or alpha <= 0:
            faults.append(f"{name} must be a number above 0, got {alpha!r}")
    if config.drop is not None and (
        not isinstance(config.drop, int) or isinstance(config.drop, bool) or config.drop < 0
    ):
        faults.append(f"drop must be a whole number of at least 0, or None for r, got {config.drop!r}")
    if config.convention == "authors" and (config.protect or config.sigma_init != "normal"):
        faults.append("convention='authors' is the released code: leave protect and sigma_init at their defaults")
    if config.convention == "authors" and (config.truncate_by != "magnitude" or config.drop is not None):
        faults.append(
            "convention='authors' fixes which triplets are dropped, and how many: leave truncate_by at 'magnitude' and "
            "drop at None, or use convention='paper'"
        )
    if not isinstance(config.orthonormal, bool):
        faults.append(f"orthonormal must be True or False, got {config.orthonormal!r}")
    elif config.orthonormal and (config.convention == "authors" or config.sigma_init != "normal"):
        faults.append("orthonormal=True starts sigma at 0: leave convention and sigma_init at their defaults")
    if not _is_number(config.protect) or not 0 <= config.protect < 1:
        faults.append(f"protect must be at least 0 and below 1, got {config.protect!r}")
    if config.truncate_by == "sensitivity" and config.tails is not None:
        faults.append(
            "tails holds components that were chosen without the task: leave it out, or use truncate_by='magnitude' or "
            "'activation'"
        )
    if not _is_number(config.lora_dropout) or not 0 <= config.lora_dropout < 1:
        faults.append(f"lora_dropout must be at least 0 and below 1, got {config.lora_dropout!r}")
    for name in ("beta", "gamma"):
        value = getattr(config, name)
        if not _is_number(value) or value < 0:
            faults.append(f"{name} must be a number of at least 0, got {value!r}")
    for name, choices in CHOICES.items():
        if getattr(config, name) not in choices:
            faults.append(f"{name} must be one of {', '.join(choices)}, got {getattr(config, name)!r}")
    if not (config.bias in ("none", "all") or (isinstance(config.bias, str) and config.bias.endswith("_only"))):
        faults.append(f"bias must be none, all or lora_only, got {config.bias!r}")
    if isinstance(config.target_modules, str) and config.target_modules != "all-linear":
        for name in ("layers_to_transform", "layers_pattern"):
            if getattr(config, name) is not None:
                faults.append(f"{name} needs target_modules as a list, got a regular expression: put it in there")
    if config.layers_pattern is not None and config.layers_to_transform is None:
        faults.append("layers_pattern needs layers_to_transform: give the indices, or leave both out")
    return faults


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""Which layers of a model a KasaConfig targets, their settings, and the decomposition of their weights."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _maybe_include_all_linear_layers,  # pyright: ignore[reportPrivateUsage]
    check_target_module_exists,
)
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from kasatune.errors import InputError, ModelError
from kasatune.kasa.config import KasaConfig, LayerSettings, require_kasa_config
from kasatune.kasa.experts import check_experts, report_experts
from kasatune.kasa.functional import drop_count, scaling
from kasatune.kasa.layer import KasaLayer
from kasatune.kasa.truncation.compute_tails import (
    TailRequest,
    compute_tails,
    in_first_process,
    is_calibration_shared,
)
from kasatune.kasa.truncation.measure_activations import Activations, calibration_line, measure_generated
from kasatune.kasa.truncation.protected_directions import protected_directions
from kasatune.kasa.truncation.self_calibration_cache import SelfCalibrated, SelfCalibrationCache
from kasatune.kasa.truncation.tail_source import TailSource
from kasatune.kasa.truncation.tails_by_activation import (
    compute_activation_tails,
    saved_activation_tails,
    sensitivity_tails,
)
from kasatune.linalg import TailSVD
from kasatune.linalg.leading_directions import direction_count
from kasatune.peft_compat.quantization_backends import get_quantization_kwargs
from kasatune.weights.base_weight import BaseWeight, refusal
from kasatune.weights.fingerprint import weight_sketch
from kasatune.weights.quantized_weight import weight_of

DEFAULT_TARGETS = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING


_STATED = ("base_fingerprint", "tail_source_used", "calibration_used", "fan_in_fan_out")
"""What `decompose` states in the configuration."""


class Target(NamedTuple):
    """A layer that an adapter is for.

    Args:
        name: in the model.
        module: the layer, with or without adapters.
        weight: of its base layer.
        settings: of the adapter in this layer.
    """

    name: str
    module: nn.Module
    weight: BaseWeight
    settings: LayerSettings

    def original(self) -> Tensor:
        """W (out, in), also where another adapter is folded or merged into it."""
        return self.module.original_weight() if isinstance(self.module, KasaLayer) else self.weight.read()

    def empty_tail(self) -> TailSVD:
        """The tail of a layer from which no triplet is dropped."""
        rows, columns = self.weight.shape
        return TailSVD(torch.zeros(rows, 0), torch.zeros(0), torch.zeros(0, columns))


class Chosen(NamedTuple):
    """What a new adapter takes from its base.

    Args:
        tails: by layer name.
        protected: the directions K (in, c), float16, by the name of each layer with protected directions.
        line: source and seconds of the text on which the base calibrated itself; None if it did not.
    """

    tails: dict[str, TailSVD]
    protected: dict[str, Tensor]
    line: str | None = None

    def on_cpu(self) -> Chosen:
        """The same on the CPU, to be sent to other processes; layers that share directions still do."""
        moved = {id(K): K.cpu() for K in self.protected.values()}
        tails = {name: TailSVD(*(part.cpu() for part in tail)) for name, tail in self.tails.items()}
        return Chosen(tails, {name: moved[id(K)] for name, K in self.protected.items()}, self.line)


def choose(targets: Sequence[Target], config: KasaConfig, model: nn.Module) -> Chosen:
    """`decompose`; where a base calibrates itself in several processes, the first one chooses for all."""
    if not is_calibration_shared() or not _calibrates_itself(config, targets):
        return decompose(targets, config, model)

    def work() -> tuple[Chosen, list[Any]]:
        chosen = decompose(targets, config, model).on_cpu()
        return chosen, [getattr(config, name) for name in _STATED]

    chosen, stated = in_first_process(work)
    for name, value in zip(_STATED, stated, strict=True):
        setattr(config, name, value)
    return chosen


def decompose(targets: Sequence[Target], config: KasaConfig, model: nn.Module) -> Chosen:
    """The tail and the protected directions of every target; fills in what the configuration states about the base.

    A quantized or offloaded weight is opened for its own turn only. Sets `base_fingerprint`, `tail_source_used`,
    `calibration_used` and `fan_in_fan_out` of `config`. With `config.calibrate_later`, what depends on activations is
    left out: those tails are zero.

    Raises:
        InputError: config.tails is not a directory of `kasatune decompose`; or truncation by activation lacks
            activations of this base, and the model cannot measure them by itself.
        ModelError: a weight cannot be read or decomposed, or is missing from that directory; by name.
    """
    start = time.perf_counter()
    calibrates_itself = _calibrates_itself(config, targets)
    cache = _cache(config, targets, model) if calibrates_itself else None
    stored = None if cache is None else cache.get()
    activations = config.activations if config.needs_activations and not config.calibrate_later else None
    if calibrates_itself and stored is None:
        weights = {target.name: target.weight for target in targets}
        activations = measure_generated(
            model, weights, inputs=config.protect > 0, tails=drops_by_activation(config, targets)
        )
    source = TailSource(config, model, quantized=any(target.weight.backend is not None for target in targets))
    fingerprint: dict[str, Any] = {}
    dropping = [] if config.calibrate_later and config.truncate_by != "magnitude" else _dropping(targets)
    requested = {target.name for target in dropping}

    def requests() -> Iterator[TailRequest]:
        for target in targets:
            W, _, bits = source.of(target.name, target.weight, target.original())
            fingerprint[target.name] = {**weight_sketch(W, bits), "held_as": target.weight.held_as}
            if target.name in requested:
                yield TailRequest(target.name, W, target.settings.drop)
            del W

    tails, layers = _tails(requests(), len(requested), config, activations, stored)
    protected: dict[str, Tensor] = {}
    if stored is not None:
        protected, config.calibration_used = stored.protected, stored.used
    elif activations is not None:
        protected = _protect(targets, activations, layers)
        config.calibration_used = _used(config, activations, layers)
        if cache is not None:
            own = tails if config.truncate_by == "activation" else {}
            cache.put(SelfCalibrated(own, protected, config.calibration_used))
    config.base_fingerprint = fingerprint
    config.tail_source_used = source.used()
    config.fan_in_fan_out = any(target.weight.transposed for target in targets)
    line = None
    if calibrates_itself:
        how = "" if stored is None else ", read from the cache"
        line = f"{calibration_line(config.calibration_used or {})}{how} in {time.perf_counter() - start:.1f} s"
    return Chosen({target.name: tails.get(target.name) or target.empty_tail() for target in targets}, protected, line)


def _tails(
    requests: Iterator[TailRequest],
    total: int,
    config: KasaConfig,
    activations: Activations | None,
    stored: SelfCalibrated | None,
) -> tuple[dict[str, TailSVD], dict[str, dict[str, Any]]]:
    """The requested tails, and what to state about their layers; every request is consumed."""
    if config.truncate_by == "magnitude" or total == 0:
        directory = config.tails if config.truncate_by == "magnitude" else None
        return compute_tails(requests, total, directory), {}
    if config.tails is not None:
        tails, config.calibration_used = saved_activation_tails(requests, config.tails)
        return tails, config.calibration_used["layers"]
    if stored is not None:
        for _ in requests:
            pass
        return stored.tails, {}
    assert activations is not None  # measured, or given by `calibrate`
    if config.truncate_by == "sensitivity":
        return sensitivity_tails(requests, activations)
    return compute_activation_tails(requests, total, activations)


def _used(config: KasaConfig, activations: Activations, layers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`KasaConfig.calibration_used`."""
    used: dict[str, Any] = {
        "source": activations.source,
        "tokens": activations.tokens,
        "seed": activations.seed,
        "layers": layers,
    }
    if config.truncate_by == "sensitivity" and activations.components is not None:
        used["losses"] = {str(length): loss for length, loss in activations.components.losses.items()}
    return used


def _calibrates_itself(config: KasaConfig, targets: Sequence[Target]) -> bool:
    """Whether the base must read text of its own now.

    Raises:
        InputError: it must not, or cannot.
    """
    if not config.needs_activations or config.calibrate_later or config.activations is not None:
        return False
    dropping = bool(_dropping(targets))
    if not config.protect and not dropping:
        return False
    if config.saved:
        if config.truncate_by == "magnitude":
            return False
        raise InputError(
            "this configuration was saved with an adapter, and its tails with the adapter's weights: load the "
            "adapter, or call calibrate(base, config) to choose other tails"
        )
    if config.truncate_by == "sensitivity" and dropping:
        raise InputError(
            "truncate_by='sensitivity' needs labelled rows of the task: pass get_peft_model(base, calibrate(base, "
            "config, batches)) batches that hold labels, or use truncate_by='activation', which needs none"
        )
    return True


def _cache(config: KasaConfig, targets: Sequence[Target], model: nn.Module) -> SelfCalibrationCache | None:
    if config.tails is not None:
        return None
    by_activation = config.truncate_by == "activation"
    settings = {t.name: [t.settings.drop if by_activation else 0, t.settings.protect] for t in targets}
    return SelfCalibrationCache.of(model, {target.name: target.weight for target in targets}, settings, seed=0)


def drops_by_activation(config: KasaConfig, targets: Sequence[Target]) -> bool:
    """Whether a component of any target is chosen by what activations use."""
    return config.truncate_by == "activation" and bool(_dropping(targets))


def _dropping(targets: Sequence[Target]) -> list[Target]:
    return [target for target in targets if target.settings.drop]


def _protect(
    targets: Sequence[Target], activations: Activations, layers: dict[str, dict[str, Any]]
) -> dict[str, Tensor]:
    """The protected directions by layer name; notes their number and energy in `layers`."""
    counts = {target.name: target.settings.protect for target in targets}
    directions = protected_directions(activations, counts)
    for name, chosen in directions.items():
        layers.setdefault(name, {}).update(protected=chosen.K.shape[1], energy=chosen.energy)
    return {name: chosen.K for name, chosen in directions.items()}


def targets_of_base(config: KasaConfig, model: nn.Module) -> list[Target]:
    """The layers that a new adapter would have in a model, which may be on the meta device; fills target_modules in.

    Raises:
        InputError: the configuration is not a kasatune.KasaConfig.
        ModelError: an entry of target_modules matches no layer, or a layer cannot be adapted; all by name.
    """
    require_kasa_config(config)
    if config.target_modules is None:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        default = DEFAULT_TARGETS.get(kind) if isinstance(kind, str) else None
        if default is None:
            raise ModelError(
                f"there are no default targets for the model type {kind!r}: name the layers in "
                "target_modules, or use all-linear"
            )
        config.target_modules = default if isinstance(default, str) else set(default)
    all_linear = str(config.target_modules).lower() == "all-linear"
    _maybe_include_all_linear_layers(config, model)
    targets = new_targets(config, model, all_linear=all_linear)
    idle = unmatched(config, [target.name for target in targets])
    if idle or not targets:
        linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if refusal(m) is None})
        raise ModelError(
            f"target_modules: {', '.join(idle) or shown(config.target_modules)} matches no layer; the layers that can "
            f"be adapted end in: {', '.join(linear)}"
        )
    faults = too_large(targets)
    if faults:
        raise ModelError("KaSA cannot adapt this model: " + "; ".join(faults))
    return targets


def new_targets(config: KasaConfig, model: nn.Module, *, all_linear: bool) -> list[Target]:
    """The targets of a new adapter; stacks of experts are refused or reported.

    Args:
        config: of the adapter.
        model: to be adapted.
        all_linear: whether target_modules was "all-linear".

    Raises:
        ModelError: a target cannot be adapted, by name.
    """
    check_experts(model, lambda name: check_target_module_exists(config, name))
    targets = matched(config, model, lambda name: bool(check_target_module_exists(config, name)))
    names = [target.name for target in targets]
    report_experts(model, names, unmatched(config, names), all_linear=all_linear)
    return targets


def matched(config: KasaConfig, model: nn.Module, is_target: Callable[[str], bool]) -> list[Target]:
    """The layers of a model whose name is a target.

    Raises:
        ModelError: a target cannot be adapted, by name.
    """
    adapted = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, BaseTunerLayer))
    quantization = get_quantization_kwargs(model)
    targets: list[Target] = []
    refused: list[str] = []
    for name, module in model.named_modules():
        if not name or (adapted and name.startswith(adapted)) or not is_target(name):
            continue
        name = uncompiled_name(name)
        base = module.get_base_layer() if isinstance(module, KasaLayer) else module
        weight = weight_of(base, **quantization)
        reason = None if weight.backend is not None else refusal(base)
        if reason is None:
            targets.append(Target(name, module, weight, layer_settings(config, name, weight.shape)))
        else:
            refused.append(f"{name} is {reason}")
    if refused:
        raise ModelError(
            f"target_modules={shown(config.target_modules)} matches layers that KaSA cannot adapt: "
            f"{'; '.join(refused)}. Name the intended layers, or leave these out with exclude_modules."
        )
    return targets


def uncompiled_name(name: str) -> str:
    """The name of a module without the wrappers that torch.compile puts around models and modules."""
    return name.replace("_orig_mod.", "")


def layer_settings(config: KasaConfig, name: str, shape: tuple[int, int]) -> LayerSettings:
    """The settings of the adapter in a layer of this name, with a weight of shape (out, in)."""
    ranks, alphas = config.rank_pattern, config.alpha_pattern
    r = ranks.get(get_pattern_key(list(ranks), name), config.r)
    alpha = alphas.get(get_pattern_key(list(alphas), name), config.lora_alpha)
    return LayerSettings(
        r=r,
        scaling=scaling(alpha, r, use_rslora=config.use_rslora),
        drop=drop_count(*shape, r, config.convention) if config.drop is None else config.drop,
        tail_width=r if config.drop is None else config.drop,
        protect=direction_count(config.protect, shape[1]),
        sigma_init=config.sigma_init,
        orthonormal=config.orthonormal,
        truncate_by=config.truncate_by,
        convention=config.convention,
        core=config.core,
        beta=config.beta,
        gamma=0.0 if config.orthonormal else config.gamma,
        penalty=config.penalty,
        truncation=config.truncation,
        tail_source=config.tail_source,
    )


def too_large(targets: Iterable[Target]) -> list[str]:
    """One message for every layer whose r or drop is not below min(out, in), or whose A has too few directions left."""
    crowded = [
        f"{name}: protect closes {settings.protect} of {weight.shape[1]} input directions and leaves fewer than rank "
        f"{settings.r}"
        for name, _, weight, settings in targets
        if settings.protect and settings.protect + settings.r > weight.shape[1]
    ]
    return crowded + [
        f"{name}: {what} {value} must be below min(out, in) = {min(weight.shape)}"
        for name, _, weight, settings in targets
        for what, value in (("rank", settings.r), ("drop", settings.drop))
        if value >= min(weight.shape) and (what == "rank" or settings.drop != settings.r)
    ]


def unmatched(config: KasaConfig, names: Sequence[str]) -> list[str]:
    """The entries of target_modules that match none of the layer names."""
    if not isinstance(config.target_modules, set | list):
        return []
    return [t for t in sorted(config.target_modules) if not any(n == t or n.endswith(f".{t}") for n in names)]


def warn_unmatched(config: KasaConfig, targets: Sequence[Target]) -> None:
    """Warn of entries of target_modules that match no layer, where others do."""
    idle = unmatched(config, [target.name for target in targets])
    if idle and targets:
        warnings.warn(f"target_modules: {', '.join(idle)} matched no layer of the model", RuntimeWarning, stacklevel=3)


def shown(target_modules: Any) -> Any:
    """target_modules for a message, in a fixed order."""
    return sorted(target_modules) if isinstance(target_modules, set) else target_modules

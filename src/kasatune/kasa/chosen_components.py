"""What a new adapter takes from its base: the tail and the protected directions of every target."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from kasatune.errors import InputError
from kasatune.kasa.config import KasaConfig
from kasatune.kasa.targets import Target
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
from kasatune.weights.fingerprint import weight_sketch

_STATED = ("base_fingerprint", "tail_source_used", "calibration_used", "fan_in_fan_out")
"""What `decompose` states in the configuration."""


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

"""Calibration: measure the activations, and the gradients, on which truncate_by and protect depend."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from kasatune.errors import InputError
from kasatune.kasa.chosen_components import Chosen, decompose, drops_by_activation
from kasatune.kasa.config import KasaConfig, require_kasa_config
from kasatune.kasa.layer import KasaLayer, kasa_layers
from kasatune.kasa.protection import project
from kasatune.kasa.targets import Target, targets_of_base
from kasatune.kasa.truncation.choose_by_sensitivity import measure_sensitivity
from kasatune.kasa.truncation.compute_tails import in_first_process, is_calibration_shared
from kasatune.kasa.truncation.measure_activations import Activations, calibration_line, measure_on

logger = logging.getLogger("kasatune")


def calibrate(
    base: nn.Module, config: KasaConfig, batches: Iterable[Mapping[str, Any]] | None = None, *, seed: int = 0
) -> KasaConfig:
    """Measure the activations of a base model: returns a copy of `config` that holds them.

        model = get_peft_model(base, calibrate(base, KasaConfig(truncate_by="activation"), batches))

    Second moments E[y y^T] or E[x x^T] are measured at the input or output of every target, whichever is smaller:
    8 min(out, in)^2 bytes a layer, as long as the returned configuration exists. With `protect` those of the inputs are
    measured too: 4 n in bytes for n tokens, or 8 in^2 with more tokens than `in`, once for all layers that read the
    same tensor. The base is left as it was: weights, training modes, random states and generation settings.

    In a distributed run every process must call this; the first one measures, on its own batches, and the others
    receive the result.

    truncate_by="sensitivity" also computes gradients, and its components are chosen here
    (truncation/choose_by_sensitivity.py); a quarter of the batches is held back for it.

    Args:
        base: the model to adapt, without the adapter.
        config: with truncate_by="activation" or "sensitivity", or protect above 0. Not modified.
        batches: dicts that `base(**batch)` takes; `attention_mask` leaves padding out. A few thousand tokens are
            enough; fewer than 4 min(out, in) are used with a stronger ridge. None: a causal language model reads 16
            sequences of 96 tokens that it samples from itself; any other model that reads tokens alone reads bundled
            text, with the tokenizer that lies beside its weights, or random tokens, which choose less well, where there
            is none. "sensitivity" requires batches with labels, of at least two rows.
        seed: of the text without batches.

    Raises:
        InputError: nothing in config depends on activations, there is no batch, a target never runs on the batches,
            the model cannot generate calibration text itself, or batches for "sensitivity" are missing or give no loss.
        ModelError: a target cannot be adapted, or its weight is not loaded; by name.
    """
    require_kasa_config(config)
    if not config.needs_activations:
        raise InputError(
            f"calibrate: the configuration has truncate_by={config.truncate_by!r} and protect={config.protect}, and "
            "does not depend on activations; use KasaConfig(truncate_by='activation') or KasaConfig(protect=0.02)"
        )
    calibrated = copy.deepcopy(config)
    # Matching fills target_modules in, which must be left for PEFT to do.
    targets = targets_of_base(copy.deepcopy(config), base)

    def work() -> Activations:
        return _measure(base, config, targets, batches, seed)

    calibrated.activations = in_first_process(work) if is_calibration_shared() else work()
    logger.info("%s in %.1f s", calibration_line(vars(calibrated.activations)), calibrated.activations.seconds)
    return calibrated


def _measure(
    model: nn.Module,
    config: KasaConfig,
    targets: Sequence[Target],
    batches: Iterable[Mapping[str, Any]] | None,
    seed: int = 0,
    source: str = "batches",
) -> Activations:
    layers = {target.name: target.weight for target in targets}
    if config.truncate_by == "sensitivity" and any(target.settings.drop for target in targets):
        drops = {target.name: target.settings.drop for target in targets}
        return measure_sensitivity(model, layers, batches, drops, inputs=config.protect > 0, source=source)
    tails = drops_by_activation(config, targets)
    return measure_on(model, layers, batches, seed, inputs=config.protect > 0, tails=tails, source=source)


def calibrate_adapter(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]] | None,
    *,
    adapter_name: str = "default",
    source: str = "batches",
) -> str | None:
    """Give an attached adapter with `calibrate_later` its tails and protected directions.

    The base runs within the attached model, with its adapters switched off. The first of several processes chooses for
    all.

    Args:
        model: a PeftModel whose adapter has not been trained.
        batches: as in `calibrate`; None for text that the model generates.
        adapter_name: the adapter.
        source: what the batches are, as noted in the configuration.

    Returns:
        One line with source and seconds; None if nothing was measured.

    Raises:
        InputError: as in `calibrate`.
    """
    tuner: Any = model.base_model
    config = require_kasa_config(tuner.peft_config[adapter_name])
    layers = {name: layer for name, layer in kasa_layers(tuner.model) if adapter_name in layer.settings}
    start = time.perf_counter()

    def work() -> tuple[Chosen, dict[str, Any] | None]:
        chosen = _choose(tuner.model, config, layers, batches, adapter_name, source)
        return chosen.on_cpu(), config.calibration_used

    # one process chooses, since sampled text may differ between machines
    outcome, config.calibration_used = in_first_process(work) if is_calibration_shared() else work()
    config.calibrate_later = False
    for name, layer in layers.items():
        layer.restore_base()
        layer.write_tail(adapter_name, outcome.tails[name])
        if name in outcome.protected:
            layer.protected[adapter_name] = outcome.protected[name]
        layer.sync_fold()
    project(layers.values(), adapter_name)
    if outcome.line is not None or config.calibration_used is None:
        return outcome.line
    return f"{calibration_line(config.calibration_used)} in {time.perf_counter() - start:.1f} s"


def _choose(
    model: nn.Module,
    config: KasaConfig,
    layers: Mapping[str, KasaLayer],
    batches: Iterable[Mapping[str, Any]] | None,
    adapter_name: str,
    source: str,
) -> Chosen:
    targets = [Target(name, layer, layer.base, layer.settings[adapter_name]) for name, layer in layers.items()]
    measured = copy.copy(config)
    measured.calibrate_later = False
    if batches is not None:
        measured.activations = _measure(model, config, targets, batches, source=source)
    chosen = decompose(targets, measured, model)
    config.calibration_used = measured.calibration_used
    return chosen

"""Calibration: measure the activations on which truncate_by="activation" and protect depend."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from kasatune.distributed.process_group import broadcast_from_first, is_main
from kasatune.errors import InputError, KasatuneError
from kasatune.kasa.config import KasaConfig, require_kasa_config
from kasatune.kasa.layer import KasaLayer, kasa_layers
from kasatune.kasa.protection import project
from kasatune.kasa.targets import Chosen, Target, decompose, targets_of_base
from kasatune.kasa.truncation.compute_tails import are_decompositions_shared, decompositions_shared
from kasatune.kasa.truncation.measure_activations import measure_on


def calibrate(
    base: nn.Module, config: KasaConfig, batches: Iterable[Mapping[str, Any]] | None = None, *, seed: int = 0
) -> KasaConfig:
    """Measure the activations of a base model: returns a copy of `config` that holds them.

        model = get_peft_model(base, calibrate(base, KasaConfig(truncate_by="activation"), batches))

    Second moments E[y y^T] or E[x x^T] are measured at the input or output of every target, whichever is smaller:
    8 min(out, in)^2 bytes a layer until the adapter is created. With `protect` those of the inputs are measured too:
    4 n in bytes for n tokens, or 8 in^2 with more tokens than `in`, once for all layers that read the same tensor. The
    base is left as it was: weights, training modes, random states and generation settings.

    Args:
        base: the model to adapt, without the adapter.
        config: with truncate_by="activation" or protect above 0. Not modified.
        batches: dicts that `base(**batch)` takes; `attention_mask` leaves padding out. A few thousand tokens are
            enough; fewer than 4 min(out, in) are used with a stronger ridge. None: a causal language model reads 16
            sequences of 96 tokens that it samples from itself; any other model that reads tokens alone reads random
            ones, which choose less well.
        seed: of the text without batches.

    Raises:
        InputError: nothing in config depends on activations, there is no batch, a target never runs on the batches, or
            the model cannot generate calibration text itself.
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
    layers = {target.name: target.weight for target in targets_of_base(copy.deepcopy(config), base)}
    calibrated.activations = measure_on(base, layers, batches, seed, inputs=config.protect > 0)
    return calibrated


def calibrate_adapter(
    model: nn.Module, batches: Iterable[Mapping[str, Any]] | None, *, adapter_name: str = "default"
) -> None:
    """Give an attached adapter with `calibrate_later` its tails and protected directions.

    The base runs within the attached model, with its adapters switched off. Within `decompositions_shared` the first
    process chooses for all.

    Args:
        model: a PeftModel whose adapter has not been trained.
        batches: as in `calibrate`; None for text that the model generates.
        adapter_name: the adapter.

    Raises:
        InputError: there is no batch, or a target never runs on the batches.
    """
    tuner: Any = model.base_model
    config = require_kasa_config(tuner.peft_config[adapter_name])
    layers = {name: layer for name, layer in kasa_layers(tuner.model) if adapter_name in layer.settings}
    shared = are_decompositions_shared()
    outcome: Chosen | KasatuneError | None = None
    if is_main() or not shared:
        try:
            with decompositions_shared(False):
                outcome = _choose(tuner.model, config, layers, batches, adapter_name)
        except KasatuneError as error:
            outcome = error
    if shared:
        # one process chooses, since sampled text may differ between machines
        outcome, config.calibration_used = broadcast_from_first((outcome, config.calibration_used))
    if isinstance(outcome, KasatuneError):
        raise outcome
    assert outcome is not None  # the first process has either chosen or failed
    config.calibrate_later = False
    for name, layer in layers.items():
        layer.restore_base()
        layer.write_tail(adapter_name, outcome.tails[name])
        if name in outcome.protected:
            layer.protected[adapter_name] = outcome.protected[name]
        layer.sync_fold()
    project(layers.values(), adapter_name)


def _choose(
    model: nn.Module,
    config: KasaConfig,
    layers: Mapping[str, KasaLayer],
    batches: Iterable[Mapping[str, Any]] | None,
    adapter_name: str,
) -> Chosen:
    weights = {name: layer.base for name, layer in layers.items()}
    measured = copy.copy(config)
    measured.activations = measure_on(model, weights, batches, inputs=config.protect > 0)
    measured.calibrate_later = False
    targets = [Target(name, layer, layer.base, layer.settings[adapter_name]) for name, layer in layers.items()]
    chosen = decompose(targets, measured, model)
    config.calibration_used = measured.calibration_used
    return chosen

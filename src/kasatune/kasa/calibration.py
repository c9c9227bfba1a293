"""Calibration: measure the activations that truncate_by="activation" chooses by."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from kasatune.errors import InputError
from kasatune.kasa.config import KasaConfig, require_kasa_config
from kasatune.kasa.targets import targets_of_base
from kasatune.kasa.truncation.measure_activations import measure, measure_generated


def calibrate(
    base: nn.Module, config: KasaConfig, batches: Iterable[Mapping[str, Any]] | None = None, *, seed: int = 0
) -> KasaConfig:
    """Measure the activations of a base model: returns a copy of `config` that holds them.

        model = get_peft_model(base, calibrate(base, KasaConfig(truncate_by="activation"), batches))

    Second moments E[y y^T] or E[x x^T] are measured at the input or output of every target, whichever is smaller:
    8 min(out, in)^2 bytes a layer until the adapter is created. The base is left as it was: weights, training modes,
    random states and generation settings.

    Args:
        base: the model to adapt, without the adapter.
        config: with truncate_by="activation". Not modified.
        batches: dicts that `base(**batch)` takes; `attention_mask` leaves padding out. A few thousand tokens are
            enough; fewer than 4 min(out, in) are used with a stronger ridge. None: a causal language model reads 16
            sequences of 96 tokens that it samples from itself; any other model that reads tokens alone reads random
            ones, which choose less well.
        seed: of the text without batches.

    Raises:
        InputError: config does not truncate by activation, there is no batch, a target never runs on the batches, or
            the model cannot generate calibration text itself.
        ModelError: a target cannot be adapted, or its weight is not loaded; by name.
    """
    require_kasa_config(config)
    if config.truncate_by != "activation":
        raise InputError(
            f"calibrate: the configuration has truncate_by={config.truncate_by!r}, which does not depend on "
            "activations; use KasaConfig(truncate_by='activation')"
        )
    calibrated = copy.deepcopy(config)
    # Matching fills target_modules in, which must be left for PEFT to do.
    layers = {target.name: target.weight for target in targets_of_base(copy.deepcopy(config), base)}
    if batches is None:
        calibrated.activations = measure_generated(base, layers, seed)
    else:
        calibrated.activations = measure(base, layers, batches)
    return calibrated
